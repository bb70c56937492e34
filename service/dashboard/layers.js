// A job's model site by site: what single decisions damage, and which ones the front takes.

import { get } from "./api.js";
import { clear, drawDamage } from "./chart.js";
import { element, table } from "./dom.js";
import { number } from "./format.js";

// A profile takes about a minute; asking more often would show nothing new.
const REFRESH_MS = 10000;
// A column per member: with more the table says less. The API has them all.
const MAX_MEMBERS = 6;

// Decisions about the values of weights: they leave every multiplication where it was.
const VALUES = new Set(["quantize", "quantize_weights", "share", "sparsify"]);

const KIND_NAMES = { channels: "channels", block: "block", layer: "layer", model: "whole model" };

function share(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function damage(value) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(3)));
}

function curve(site) {
  if (!site.options.length) return site.frozen ? element("span", { class: "faint" }, site.frozen) : "–";
  return element("ul", {}, site.options.map((o) => element("li", {}, `${o.option}: ${damage(o.damage)}`)));
}

function taken(member, site) {
  const found = member.decisions.filter((d) => d.site === site.name && d.kind === site.kind);
  if (!found.length) return "–";
  return element("span", {}, found.map((d) => [
    element("div", {}, d.option),
    element("small", {}, cost(d)),
    d.damage === null ? null : element("small", {}, `damage alone ${damage(d.damage)}`),
  ]).flat());
}

function cost({ before, after, decision }) {
  return VALUES.has(decision.kind)
    ? `${number("weight_bytes", before.weight_bytes)} → ${number("weight_bytes", after.weight_bytes)}`
    : `${number("macs", before.macs)} → ${number("macs", after.macs)} MACs`;
}

function words(profile) {
  if (profile.state === "failed") return `The sites could not be profiled: ${profile.problem}`;
  if (profile.state !== "ready") {
    return profile.state === "computing"
      ? "The sites are being profiled." : "The sites are profiled when a job on this model starts.";
  }
  const left = profile.left_out.length;
  return `Damage of single decisions before any training: how far the outputs move on ${profile.images} `
    + `calibration images (channels by ${profile.selector}).${left ? ` Options left out: ${left}.` : ""}`;
}

function leftOut(profile) {
  if (!profile.left_out.length) return null;
  return element("details", {}, element("summary", {}, "What was left out"),
    element("ul", {}, profile.left_out.map((l) => element("li", {}, `${l.site}, ${l.option}: ${l.reason}`))));
}

/** The sites' table: one column per member of the front, or of the best so far. */
export function layerTable(found) {
  const members = found.members.slice(0, MAX_MEMBERS);
  const columns = [
    { title: "Site" }, { title: "Kind" }, { title: "Channels", number: true },
    { title: "MACs", number: true }, { title: "Parameters", number: true }, { title: "Damage" },
    ...members.map((m, at) => ({ title: `${found.provisional ? "Best so far" : "Member"} ${at}` })),
  ];
  const rows = found.sites.map((site) => ({
    cells: [
      element("code", {}, site.name), KIND_NAMES[site.kind] ?? site.kind,
      site.channels ? String(site.channels) : "–", share(site.macs_share), share(site.params_share),
      curve(site), ...members.map((m) => taken(m, site)),
    ],
  }));
  const more = found.members.length > members.length
    ? `, the first ${members.length} of ${found.members.length} members` : "";
  return table(`Sites of the model and what is decided there${more}`, columns, rows);
}

/** Options of one sort form one group of bars: a keep ratio, or what else was tried. */
export function damageGroups(sites) {
  const groups = new Map();
  for (const site of sites) {
    for (const option of site.options) {
      // The least damage that a logarithmic axis shows beside the others.
      const bar = { site: site.name, damage: Math.max(option.damage, 1e-6), words: `${option.option}: ${damage(option.damage)}` };
      const near = Math.round(4 * (option.keep_ratio ?? 0)) / 4;
      const name = option.keep_ratio === null ? option.option : `keep about ${near}`;
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(bar);
    }
  }
  return [...groups].map(([name, bars]) => ({ name, bars }));
}

/** The section of a job's page; `node` is its place. */
export class Layers {
  constructor(path) {
    this.path = path;
    this.found = null;
    this.asked = -Infinity;
    this.shown = "";
    this.timer = 0;
    this.stopped = false;
    this.note = element("p", { class: "faint" }, "Not asked yet.");
    this.chart = element("div", { class: "chart small", hidden: true, role: "img", "aria-label": "Damage by site; the table below has the same data" });
    this.rest = element("div");
    this.node = element("section", { class: "layers" }, this.note, this.chart, this.rest);
  }

  /** Ask again where something may have changed: another front, or a profile that was not there. */
  async update(front, ended) {
    const version = JSON.stringify([front.revision, front.members.map((m) => m.trial_id), front.nearest.map((m) => m.trial_id), ended]);
    const settled = this.found && ["ready", "failed"].includes(this.found.profile.state);
    if (settled && version === this.shown) return;
    if (this.found && !ended && performance.now() - this.asked < REFRESH_MS) return;
    this.asked = performance.now();
    try {
      this.found = await get(this.path);
    } catch (error) {
      this.note.textContent = `The sites cannot be shown: ${error.message}`;
      return;
    }
    this.shown = version;
    if (this.stopped) return;
    this.note.textContent = words(this.found.profile);
    this.rest.replaceChildren(...[layerTable(this.found), leftOut(this.found.profile)].filter(Boolean));
    await this.draw();
    // Nothing else wakes an ended job's page while its profile is still being computed.
    if (ended && this.found.profile.state === "computing") {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.update(front, ended), REFRESH_MS);
    }
  }

  async draw() {
    const groups = damageGroups(this.found?.sites ?? []);
    this.chart.hidden = !groups.length;
    if (!groups.length || this.stopped) return;
    try {
      await drawDamage(this.chart, groups);
    } catch (error) {
      this.chart.textContent = error.message;
    }
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    clear(this.chart);
  }
}
