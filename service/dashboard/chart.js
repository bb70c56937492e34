// The Pareto scatter. Plotly is loaded when the first chart is drawn.

import { drawn, interval, quantityName, reading, unit } from "./format.js";

let loading = null;

function plotly() {
  loading ??= new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = "plotly.min.js";
    script.onload = () => done(window.Plotly);
    script.onerror = () => {
      loading = null;
      failed(new Error("The chart library did not load; the tables below have the same data."));
    };
    document.head.append(script);
  });
  return loading;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Key of a quantity: what names its axis in the address. */
export function keyOf(quantity) {
  const place = quantity.device ? `@${quantity.device}:${quantity.statistic ?? ""}` : "";
  return quantity.metric + place;
}

/** The reading of a quantity among a trial's, or undefined. */
export function find(readings, key) {
  return Object.values(readings ?? {}).find((r) => keyOf(r) === key);
}

// Plotly reads a small set of tags in hover texts; names from the server are shown as they are.
function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function trace(name, points, x, y, marker, mode = "markers") {
  return {
    name, mode, marker, type: "scatter",
    x: points.map((p) => drawn(x.metric, p.x.value)),
    y: points.map((p) => drawn(y.metric, p.y.value)),
    text: points.map((p) => plain([p.label, ...[p.x, p.y].map((r) => `${reading(r)} ${interval(r)}`)].join("\n")).replaceAll("\n", "<br>")),
    customdata: points.map((p) => p.id),
    hoverinfo: "text",
  };
}

function points(items, x, y) {
  return items
    .map((item) => ({
      id: item.id, label: item.label, x: find(item.readings, keyOf(x)), y: find(item.readings, keyOf(y)),
    }))
    .filter((p) => p.x && p.y);
}

/** Where a bound lies on an axis, in drawn numbers; null where the baseline is not known yet. */
export function limitOf(constraint, baseline) {
  const bound = constraint.at_most ?? constraint.at_least;
  if (!constraint.relative_to) return drawn(constraint.metric, bound);
  const dense = find(baseline, keyOf(constraint));
  if (!dense) return null;
  const value = constraint.relative_to === "baseline" ? bound * dense.value : dense.value + bound;
  return drawn(constraint.metric, value);
}

function boundLines(constraints, baseline, x, y) {
  const lines = [];
  for (const c of constraints) {
    const limit = limitOf(c, baseline);
    if (limit === null) continue;
    const style = { color: colour("--bad"), width: 1.5, dash: "dot" };
    if (keyOf(c) === keyOf(x)) {
      lines.push({ type: "line", x0: limit, x1: limit, yref: "paper", y0: 0, y1: 1, line: style });
    }
    if (keyOf(c) === keyOf(y)) {
      lines.push({ type: "line", y0: limit, y1: limit, xref: "paper", x0: 0, x1: 1, line: style });
    }
  }
  return lines;
}

/**
 * Draw or redraw the scatter.
 * @param {HTMLElement} node
 * @param {{trials: Array, front: Object, constraints: Array, x: Object, y: Object}} view - `x` and
 *   `y` are quantities; every trial has id, label, readings and feasible.
 */
export async function draw(node, { trials, front, constraints, x, y }) {
  const Plotly = await plotly();
  const members = front.members.map((m, at) => ({ id: m.trial_id, label: `member ${at}`, readings: m.readings }));
  const baseline = [{ id: "", label: "baseline", readings: front.baseline }];
  const inside = points(trials.filter((t) => t.feasible), x, y);
  const outside = points(trials.filter((t) => !t.feasible), x, y);
  const front_ = points(members, x, y)
    .sort((a, b) => a.x.value - b.x.value);
  const axis = (quantity) => ({
    title: { text: plain(`${quantityName(quantity)}${unit(quantity.metric) ? ` [${unit(quantity.metric)}]` : ""}`) },
    gridcolor: colour("--line"), zeroline: false, automargin: true,
  });
  const traces = [
    trace("outside the bounds", outside, x, y, { color: colour("--faint"), symbol: "x-thin-open", size: 7 }),
    trace("within the bounds", inside, x, y, { color: colour("--good"), size: 7, opacity: 0.75 }),
    trace(front.provisional ? "front so far" : "front", front_, x, y,
      { color: colour("--front"), size: 11, symbol: "diamond" }, "lines+markers"),
    trace("baseline", points(baseline, x, y), x, y, { color: colour("--ink"), size: 12, symbol: "star" }),
  ];
  const layout = {
    xaxis: axis(x), yaxis: axis(y),
    shapes: boundLines(constraints, front.baseline, x, y),
    paper_bgcolor: colour("--paper"), plot_bgcolor: colour("--paper"),
    font: { color: colour("--ink") }, hovermode: "closest",
    legend: { orientation: "h", y: 1.12 }, margin: { t: 40, r: 20, b: 50, l: 60 },
    uirevision: `${keyOf(x)} ${keyOf(y)}`,
  };
  await Plotly.react(node, traces, layout, { responsive: true, displaylogo: false });
}

/**
 * Draw or redraw the damage of single decisions, one group of bars per site.
 * @param {HTMLElement} node
 * @param {Array<{name: string, bars: Array<{site: string, damage: number, words: string}>}>} groups
 */
export async function drawDamage(node, groups) {
  const Plotly = await plotly();
  const traces = groups.map((group) => ({
    name: group.name, type: "bar",
    x: group.bars.map((bar) => plain(bar.site)),
    y: group.bars.map((bar) => bar.damage),
    text: group.bars.map((bar) => plain(`${bar.site}\n${bar.words}`).replaceAll("\n", "<br>")),
    textposition: "none", hoverinfo: "text",
  }));
  const layout = {
    barmode: "group",
    xaxis: { type: "category", automargin: true, tickfont: { size: 10 } },
    yaxis: {
      type: "log", title: { text: "damage" }, gridcolor: colour("--line"), automargin: true,
    },
    paper_bgcolor: colour("--paper"), plot_bgcolor: colour("--paper"),
    font: { color: colour("--ink") },
    legend: { orientation: "h", y: 1.2 }, margin: { t: 30, r: 20, b: 50, l: 60 },
  };
  await Plotly.react(node, traces, layout, { responsive: true, displaylogo: false });
}

/** Free what a chart holds. */
export function clear(node) {
  window.Plotly?.purge(node);
}
