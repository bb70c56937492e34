// Tables of a job's front and trials.

import { contentUrl, hasKey, save } from "./api.js";
import { keyOf } from "./chart.js";
import { element, table } from "./dom.js";
import { ORDER, interval, quantityName, reading } from "./format.js";

// The newest trials are what one watches; the API has them all.
const MAX_ROWS = 500;

function columnsOf(groups) {
  const found = new Map();
  for (const readings of groups) {
    for (const r of Object.values(readings ?? {})) found.set(keyOf(r), r);
  }
  // 2 x MACs says nothing more.
  if (found.has("macs")) found.delete("flops");
  const place = (r) => (ORDER.includes(r.metric) ? ORDER.indexOf(r.metric) : ORDER.length);
  return [...found.values()].sort((a, b) => place(a) - place(b))
    .map((r) => ({ key: keyOf(r), title: quantityName(r), number: true }));
}

function cell(readings, key) {
  const found = Object.values(readings ?? {}).find((r) => keyOf(r) === key);
  if (!found) return "–";
  const ratio = found.ratio ? element("small", {}, ratioText(found)) : null;
  const spread = interval(found) ? element("small", {}, interval(found)) : null;
  return element("span", { title: found.warning ?? null }, reading(found), spread, ratio);
}

// A time counts as faster or slower only where the whole interval of its ratio says so.
function ratioText({ ratio, device }) {
  const alike = device && ratio.low <= 1 && ratio.high >= 1;
  return `${ratio.value.toFixed(2)} × baseline${alike ? ", not told apart" : ""}`;
}

function download(role, artifactId) {
  const attributes = { href: contentUrl(artifactId), download: true };
  if (hasKey()) {
    attributes.click = (event) => {
      event.preventDefault();
      save(artifactId, `${role}-${artifactId}`).catch((error) => alert(error.message));
    };
  }
  return element("a", attributes, role);
}

function downloads(artifacts) {
  const links = Object.entries(artifacts ?? {}).map(([role, id]) => download(role, id));
  if (!links.length) return "–";
  return element("span", {}, links.flatMap((link, at) => (at ? [" · ", link] : [link])));
}

/** The front, or the nearest points, with the baseline above. */
export function frontTable(front) {
  const members = front.members.length ? front.members : front.nearest;
  if (!members.length && !Object.keys(front.baseline).length) {
    return element("p", { class: "faint" }, "Nothing on the front yet.");
  }
  const columns = columnsOf([front.baseline, ...members.map((m) => m.readings)]);
  const cells = (readings) => columns.map((c) => cell(readings, c.key));
  const rows = [{ kind: "baseline", cells: ["baseline", ...cells(front.baseline), ""] }];
  members.forEach((m, at) => rows.push({ cells: [String(at), ...cells(m.readings), downloads(m.artifacts)] }));
  let caption = "Front: rebuilt, measured on the device, scored on held-out data";
  if (front.provisional) caption = "Front so far: search trials, neither recovered nor confirmed";
  if (!front.members.length && members.length) caption = "The points that came nearest to the bounds";
  return table(caption, [{ title: "Member" }, ...columns, { title: "Download" }], rows);
}

function bounds(trial) {
  if (trial.feasible === null || trial.feasible === undefined) return "–";
  if (trial.feasible) return element("span", { class: "good" }, "holds all");
  const missed = Object.entries(trial.violations ?? {}).filter(([, v]) => v > 0)
    .map(([name, v]) => `${name} by ${(100 * v).toFixed(1)} %`);
  return element("span", { class: "bad" }, missed.length ? `misses ${missed.join(", ")}` : "misses");
}

/** All trials, newest first. */
export function trialTable(trials) {
  if (!trials.length) return element("p", { class: "faint" }, "No trials yet.");
  const shown = trials.slice(-MAX_ROWS).reverse();
  const columns = columnsOf(shown.map((t) => t.readings));
  const rows = shown.map((t) => ({
    cells: [
      String(t.number), t.remembered ? `${t.state}, known before` : t.state, t.fidelity, t.agent ?? "",
      bounds(t),
      ...columns.map((c) => cell(t.readings, c.key)),
    ],
  }));
  const caption = shown.length < trials.length
    ? `The newest ${shown.length} of ${trials.length} trials` : `${trials.length} trials, newest first`;
  const heads = ["State", "Fidelity", "Agent", "Bounds"].map((title) => ({ title }));
  return table(caption, [{ title: "#", number: true }, ...heads, ...columns], rows);
}
