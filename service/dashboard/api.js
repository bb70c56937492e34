// The public REST and SSE API, as every other client sees it.

const ROOT = "/api/v1";
const KEY = "paretopress-api-key";
const RECONNECT_MS = 1000;
// The server speaks at least every 15 s; twice that without a byte is a dead line.
const SILENCE_MS = 35000;

/** The server's refusal; `status` is 401 where it wants an API key. */
export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `HTTP status ${status}`);
    this.status = status;
    this.requestId = document.request_id;
  }
}

/** Keep an API key for this tab. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

async function refuse(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    document = { title: response.statusText };
  }
  throw new Problem(response.status, document);
}

/** The JSON data of a resource. */
export async function get(path) {
  const response = await fetch(ROOT + path, { headers: headers({ Accept: "application/json" }) });
  if (!response.ok) await refuse(response);
  return response.json();
}

/** All items of a listing, page by page. */
export async function getAll(path, limit = 200) {
  const items = [];
  let cursor = null;
  do {
    const more = cursor ? `&cursor=${encodeURIComponent(cursor)}` : "";
    const page = await get(`${path}?limit=${limit}${more}`);
    items.push(...page.data);
    cursor = page.has_more === false ? null : page.next_cursor ?? null;
  } while (cursor);
  return items;
}

/** Ask for something to happen. */
export async function post(path) {
  const response = await fetch(ROOT + path, {
    method: "POST",
    headers: headers({ "Idempotency-Key": crypto.randomUUID() }),
  });
  if (!response.ok) await refuse(response);
  return response.json();
}

/** Address of an artifact's bytes. */
export function contentUrl(artifactId) {
  return `${ROOT}/artifacts/${encodeURIComponent(artifactId)}/content`;
}

/** Save an artifact; needed where a key is set, which a plain link cannot carry. */
export async function save(artifactId, fileName) {
  const response = await fetch(contentUrl(artifactId), { headers: headers() });
  if (!response.ok) await refuse(response);
  const url = URL.createObjectURL(await response.blob());
  const link = Object.assign(document.createElement("a"), { href: url, download: fileName });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** Whether requests carry a key. */
export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/**
 * Follow a job's events until `signal` aborts; every event once and in order, over any number of
 * broken connections. EventSource cannot carry a key, so the stream is read by fetch.
 * @param {string} jobId
 * @param {{onEvent: Function, onState: Function, signal: AbortSignal}} options
 */
export async function follow(jobId, { onEvent, onState, signal }) {
  let last = 0;
  while (!signal.aborted) {
    const silence = new AbortController();
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
    };
    try {
      alive();
      const more = { Accept: "text/event-stream" };
      if (last) more["Last-Event-ID"] = String(last);
      const response = await fetch(`${ROOT}/jobs/${encodeURIComponent(jobId)}/events`, {
        headers: headers(more),
        signal: AbortSignal.any([signal, silence.signal]),
      });
      if (!response.ok) await refuse(response);
      // The job has ended, and nothing came after `last`.
      if (response.status === 204) return;
      onState("live");
      for await (const message of messages(response.body, alive)) {
        const seq = Number(message.id);
        if (seq <= last) continue;
        last = seq;
        if (onEvent({ seq, kind: message.event, data: message.data }) === "end") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status < 500) {
        onState(error.message);
        return;
      }
    } finally {
      clearTimeout(timer);
    }
    onState("reconnecting");
    await new Promise((done) => setTimeout(done, RECONNECT_MS));
  }
}

async function* messages(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let message = { id: "", event: "message", lines: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (message.lines.length) {
          yield { id: message.id, event: message.event, data: parsed(message.lines.join("\n")) };
        }
        message = { id: message.id, event: "message", lines: [] };
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "data") message.lines.push(text);
      else if (field === "event") message.event = text;
      else if (field === "id") message.id = text;
    }
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}
