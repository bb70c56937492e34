// Numbers and bounds in words.

const NAMES = {
  top1: "top-1", top5: "top-5", agreement: "agreement", latency_ms: "latency",
  latency_hot_ms: "hot latency", throughput: "throughput", runtime_bytes: "runtime size", download_bytes: "download",
  resident_bytes: "resident", peak_memory_bytes: "peak memory", load_ms: "load time",
  first_inference_ms: "first inference", energy_mj: "energy", macs: "MACs", flops: "FLOPs", params: "parameters",
};
const SHARES = new Set(["top1", "top5", "agreement"]);
const STEPS = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

export const ORDER = Object.keys(NAMES);

/** Number of a metric as it is drawn: shares in percent. */
export function drawn(metric, value) {
  return SHARES.has(metric) ? 100 * value : value;
}

/** Unit of a drawn number. */
export function unit(metric) {
  if (SHARES.has(metric)) return "%";
  if (metric.endsWith("_ms")) return "ms";
  if (metric.endsWith("_bytes")) return "bytes";
  if (metric === "energy_mj") return "mJ";
  return metric === "throughput" ? "1/s" : "";
}

/** Name of a quantity: metric, statistic, device. */
export function quantityName(quantity) {
  const name = NAMES[quantity.metric] ?? quantity.metric;
  const statistic = quantity.statistic ? ` ${quantity.statistic}` : "";
  return `${name}${statistic}${quantity.device ? ` on ${quantity.device}` : ""}`;
}

/** A value with its unit, in three or four digits. */
export function number(metric, value) {
  if (SHARES.has(metric)) return `${(100 * value).toFixed(2)} %`;
  if (metric.endsWith("_ms")) return `${Number(value.toPrecision(4))} ms`;
  if (metric === "throughput") return `${Number(value.toPrecision(4))} /s`;
  if (metric === "energy_mj") return `${Number(value.toPrecision(4))} mJ`;
  const suffix = metric.endsWith("_bytes") ? "B" : "";
  for (const [size, letter] of STEPS) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${letter}${suffix}`;
  }
  return `${Number(value.toPrecision(4))} ${suffix}`.trim();
}

/** A reading's value; `~` marks an estimate, `!` a doubt. */
export function reading(r) {
  return `${r.estimated ? "~" : ""}${number(r.metric, r.value)}${r.warning ? " !" : ""}`;
}

/** A reading's 95 % interval; empty where it is exact. Shares are not in its middle near 0 and 1. */
export function interval(r) {
  if (!(r.high > r.low)) return "";
  if (SHARES.has(r.metric)) return `[${(100 * r.low).toFixed(1)}, ${(100 * r.high).toFixed(1)}]`;
  return `±${Number(((r.high - r.low) / 2).toPrecision(2))}`;
}

/** A bound as a line. */
export function constraint(c) {
  const upper = c.at_most !== null && c.at_most !== undefined;
  const bound = upper ? c.at_most : c.at_least;
  let limit = number(c.metric, bound);
  if (c.relative_to === "baseline") limit = `${bound} × baseline`;
  if (c.relative_to === "baseline_difference") {
    limit = `baseline ${bound < 0 ? "−" : "+"} ${number(c.metric, Math.abs(bound))}`;
  }
  return `${quantityName(c)} ${upper ? "≤" : "≥"} ${limit}`;
}

/** A time span. */
export function duration(seconds) {
  const whole = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`;
  return `${Math.floor(whole / 3600)}:${two(Math.floor((whole % 3600) / 60))} h`;
}
