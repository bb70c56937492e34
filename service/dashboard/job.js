// The page of one job: live scatter, bounds, front with downloads, trials.

import { follow, get, getAll, post } from "./api.js";
import { clear, draw, keyOf } from "./chart.js";
import { element } from "./dom.js";
import { ORDER, constraint, quantityName } from "./format.js";
import { progressBar, stateWords } from "./jobs.js";
import { frontTable, trialTable } from "./job_tables.js";
import { Layers } from "./layers.js";

const ENDED = new Set(["SUCCEEDED", "FAILED", "CANCELLED"]);
// Redrawing at every event would take all of a core while old events are replayed.
const REFRESH_MS = 1000;
// Above this many changed trials one listing is cheaper than asking for each.
const MAX_SINGLE = 20;

/** Quantities that any trial or the baseline has a reading of, in a reader's order. */
function quantities(state) {
  const found = new Map();
  for (const readings of [state.front.baseline, ...[...state.trials.values()].map((t) => t.readings)]) {
    for (const r of Object.values(readings ?? {})) {
      found.set(keyOf(r), { metric: r.metric, device: r.device, statistic: r.statistic });
    }
  }
  const place = (q) => (ORDER.includes(q.metric) ? ORDER.indexOf(q.metric) : ORDER.length);
  return [...found.values()].sort((a, b) => place(a) - place(b));
}

function chosenAxes(state, params) {
  const all = quantities(state);
  const pick = (name, wanted) =>
    all.find((q) => keyOf(q) === params.get(name)) ?? all.find((q) => wanted.includes(q.metric)) ?? all[0];
  const objectives = (state.job.spec.objectives ?? []).map((o) => o.metric);
  const y = pick("y", [objectives[0] ?? "top1", "top1", "agreement"]);
  const others = objectives.slice(1).concat(["latency_ms", "macs", "runtime_bytes"]);
  const x = pick("x", others.filter((metric) => metric !== y?.metric));
  return { all, x, y };
}

function axisPicker(name, label, all, chosen) {
  const options = all.map((q) =>
    element("option", { value: keyOf(q), selected: keyOf(q) === keyOf(chosen) }, quantityName(q)));
  const change = (event) => {
    const [path, query] = location.hash.split("?");
    const params = new URLSearchParams(query ?? "");
    params.set(name, event.target.value);
    history.replaceState(null, "", `${path}?${params}`);
    window.dispatchEvent(new Event("axes"));
  };
  return element("label", {}, `${label} `, element("select", { change, "data-axis": name }, options));
}

function boundsList(job) {
  const bounds = job.spec.constraints ?? [];
  if (!bounds.length) return element("p", { class: "faint" }, "No bounds.");
  return element("ul", { class: "constraints" }, bounds.map((c) => element("li", {}, constraint(c))));
}

function heading(job, onCancel) {
  const cancel = ENDED.has(job.state) || job.state === "CANCELLING"
    ? null : element("button", { type: "button", click: onCancel }, "Cancel the job");
  return [
    element("h1", {}, job.name || job.id),
    element("p", {}, stateWords(job), " · ", progressBar(job), " · ",
      element("code", {}, job.id), " ", cancel),
    job.warm_trials ? element("p", { class: "faint" },
      `Started warm: ${job.warm_trials} trials are known from earlier jobs.`) : null,
    job.problem ? element("p", { class: "notice", role: "alert" },
      job.problem.detail || job.problem.title || "The job failed.") : null,
  ].filter(Boolean);
}

function bindingNotice(front) {
  const items = front.binding_constraints.map((b) => {
    const bound = b.constraint && typeof b.constraint === "object" ? constraint(b.constraint) : b.constraint;
    const rest = Object.entries(b).filter(([key, value]) => key !== "constraint" && value !== null)
      .map(([key, value]) => `${key.replaceAll("_", " ")}: ${typeof value === "object" ? JSON.stringify(value) : value}`);
    return element("li", {}, [bound, ...rest].filter(Boolean).join("; "));
  });
  return element("div", { class: "notice" },
    element("p", {}, "No point met every bound. What stood in the way:"), element("ul", {}, items));
}

class Page {
  constructor(main, id, signal) {
    this.id = id;
    this.signal = signal;
    this.path = `/jobs/${encodeURIComponent(id)}`;
    this.state = { job: null, front: null, trials: new Map() };
    this.head = element("div");
    this.axes = element("div", { class: "axes" });
    this.chart = element("div", { class: "chart", role: "img", "aria-label": "Trials and front; the tables below have the same data" });
    this.bounds = element("div");
    this.front = element("div");
    this.trials = element("div");
    this.layers = new Layers(`${this.path}/analysis/layers`);
    main.replaceChildren(this.head, element("h2", {}, "Bounds"), this.bounds,
      element("h2", {}, "Pareto front"), this.axes, this.chart, this.front,
      element("h2", {}, "Trials"), this.trials,
      element("h2", {}, "Layers"), this.layers.node);
    this.changed = new Set();
    this.reload = false;
    this.timer = 0;
  }

  async load() {
    const [job, front, trials] = await Promise.all(
      [get(this.path), get(`${this.path}/front`), getAll(`${this.path}/trials`)]);
    this.state = { job, front, trials: new Map(trials.map((t) => [t.id, t])) };
    document.title = `${job.name || job.id} · ParetoPress`;
    await this.show();
  }

  /** Ask again for what changed, then show it; events that come meanwhile wait for the next turn. */
  async refresh() {
    const ids = [...this.changed];
    const all = this.reload;
    const trials = all || ids.length > MAX_SINGLE
      ? await getAll(`${this.path}/trials`)
      : await Promise.all(ids.map((id) => get(`/trials/${encodeURIComponent(id)}`)));
    // Only what was read is done with; a failed request asks for it again.
    for (const id of ids) this.changed.delete(id);
    if (all) this.reload = false;
    for (const trial of trials) this.state.trials.set(trial.id, trial);
    [this.state.job, this.state.front] = await Promise.all([get(this.path), get(`${this.path}/front`)]);
    if (!this.signal.aborted) await this.show();
  }

  onEvent(event) {
    const payload = event.data.payload ?? event.data;
    if (payload.trial_id && event.kind !== "trial.progress") this.changed.add(payload.trial_id);
    if (event.kind === "job.warm_start") this.reload = true;
    this.soon();
    return event.kind.startsWith("job.") && ENDED.has(payload.state) ? "end" : "go on";
  }

  /** Refresh once, a little later, however often this is asked meanwhile. */
  soon() {
    if (this.signal.aborted) return;
    this.timer ||= setTimeout(() => {
      this.timer = 0;
      this.refresh().catch(() => this.soon());
    }, REFRESH_MS);
  }

  async show() {
    const { job, front } = this.state;
    const trials = [...this.state.trials.values()].sort((a, b) => a.number - b.number);
    this.head.replaceChildren(...heading(job, () => post(`${this.path}:cancel`).then(() => this.soon())));
    this.bounds.replaceChildren(boundsList(job));
    this.front.replaceChildren(
      ...(front.binding_constraints.length ? [bindingNotice(front)] : []), frontTable(front));
    this.trials.replaceChildren(trialTable(trials));
    // What the layers say comes when it comes: nothing else waits for it.
    this.layers.update(front, ENDED.has(job.state));
    await this.showChart();
  }

  async showChart() {
    const params = new URLSearchParams(location.hash.split("?")[1] ?? "");
    const { all, x, y } = chosenAxes(this.state, params);
    if (!x || !y) {
      this.chart.textContent = "Nothing is measured yet.";
      return;
    }
    if (!this.axes.contains(document.activeElement)) {
      this.axes.replaceChildren(axisPicker("x", "Horizontal", all, x), axisPicker("y", "Vertical", all, y));
    }
    const trials = [...this.state.trials.values()].map((t) => ({
      id: t.id, feasible: t.feasible, readings: t.readings,
      label: `trial ${t.number}, ${t.fidelity}`,
    }));
    if (!this.chart.querySelector(".plot-container")) this.chart.textContent = "";
    try {
      await draw(this.chart, {
        trials, front: this.state.front, constraints: this.state.job.spec.constraints ?? [], x, y,
      });
    } catch (error) {
      this.chart.textContent = error.message;
    }
  }
}

/** Show the page until `signal` aborts. */
export async function jobPage(main, id, signal, onState) {
  const page = new Page(main, id, signal);
  await page.load();
  const redraw = () => Promise.all([page.showChart(), page.layers.draw()]);
  const theme = matchMedia("(prefers-color-scheme: dark)");
  window.addEventListener("axes", redraw, { signal });
  theme.addEventListener("change", redraw, { signal });
  signal.addEventListener("abort", () => {
    clearTimeout(page.timer);
    clear(page.chart);
    page.layers.stop();
  });
  if (ENDED.has(page.state.job.state)) {
    onState("");
    return;
  }
  await follow(id, { onEvent: (event) => page.onEvent(event), onState, signal });
  if (!signal.aborted) {
    await page.refresh();
    onState("ended");
  }
}
