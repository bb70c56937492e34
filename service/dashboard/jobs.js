// The page of all jobs.

import { getAll } from "./api.js";
import { element, table } from "./dom.js";
import { duration } from "./format.js";

const REFRESH_MS = 3000;

/** How far a job is, as a bar with its words. */
export function progressBar(job) {
  const { trials, budget_trials: budget, wall_s: seconds } = job.progress;
  const words = `${trials}${budget ? ` of ${budget}` : ""} trials, ${duration(seconds)}`;
  if (!budget) return words;
  return element("span", {},
    element("progress", { max: String(budget), value: String(Math.min(trials, budget)), "aria-label": words }),
    " ", words);
}

/** State and, when ended, outcome. */
export function stateWords(job) {
  const kind = { front_found: "good", failed: "bad", infeasible: "bad" }[job.outcome] ?? "";
  const words = job.outcome ? `${job.state} (${job.outcome.replaceAll("_", " ")})` : job.state;
  return element("span", { class: kind }, words);
}

function row(job) {
  return {
    cells: [
      element("a", { href: `#/jobs/${encodeURIComponent(job.id)}` }, job.name || job.id),
      stateWords(job), progressBar(job),
      element("time", { datetime: job.created_at }, new Date(job.created_at).toLocaleString()),
      element("code", {}, job.id),
    ],
  };
}

function emptyState() {
  return element("div", {},
    element("p", {}, "No jobs yet. Start one from a terminal:"),
    element("pre", {}, "paretopress demo\n# or, with a model and a dataset registered:\n"
      + "paretopress submit --model mdl_... --dataset dst_... --max-latency-ratio 0.6 --trials 60"));
}

/** Show the page until `signal` aborts. */
export async function jobsPage(main, signal) {
  document.title = "Jobs · ParetoPress";
  const place = element("div", {}, element("p", { class: "faint" }, "Loading ..."));
  main.replaceChildren(element("h1", {}, "Jobs"), place);
  const columns = ["Job", "State", "Progress", "Created", "Id"].map((title) => ({ title }));
  let shown = "";
  while (!signal.aborted) {
    const jobs = await getAll("/jobs", 100);
    if (signal.aborted) return;
    const now = JSON.stringify(jobs);
    // Replacing equal rows would take the keyboard's focus away.
    if (now !== shown) {
      shown = now;
      place.replaceChildren(jobs.length ? table(`${jobs.length} jobs`, columns, jobs.map(row)) : emptyState());
    }
    await new Promise((done) => setTimeout(done, REFRESH_MS));
  }
}
