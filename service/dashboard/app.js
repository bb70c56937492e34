// The address decides what is shown: #/ is the list of jobs, #/jobs/ID one job.

import { Problem, keepKey } from "./api.js";
import { element } from "./dom.js";
import { jobPage } from "./job.js";
import { jobsPage } from "./jobs.js";

const main = document.getElementById("main");
const connection = document.getElementById("connection");
let leaving = new AbortController();
let shown = null;

function onState(words) {
  connection.textContent = words;
}

function askForKey() {
  const input = element("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    keepKey(input.value.trim());
    show(true);
  };
  main.replaceChildren(element("h1", {}, "API key"),
    element("form", { submit },
      element("label", { for: "key" }, "This server asks for an API key. It is kept in this tab only. "),
      input, " ", element("button", {}, "Go on")));
  input.focus();
}

function showError(error) {
  if (error instanceof Problem && error.status === 401) {
    askForKey();
    return;
  }
  const request = error.requestId ? ` (request ${error.requestId})` : "";
  main.replaceChildren(element("div", { class: "notice", role: "alert" },
    element("p", {}, `${error.message}${request}`),
    element("button", { type: "button", click: () => show(true) }, "Try again")));
}

async function show(again = false) {
  const path = location.hash.slice(1).split("?")[0] || "/";
  if (path === shown && !again) return;
  shown = path;
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  onState("");
  const job = path.match(/^\/jobs\/([^/]+)$/);
  try {
    if (job) await jobPage(main, decodeURIComponent(job[1]), signal, onState);
    else await jobsPage(main, signal);
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

// The skip link moves the focus; its target must not become the address of a page.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

window.addEventListener("hashchange", () => {
  show();
  main.focus();
});
show();
