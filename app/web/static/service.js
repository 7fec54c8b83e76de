// The way to the API: the key, the problems it reports, and the events of a stream.

import { byId } from "./elements.js";

export const keyNeeded = document.body.hasAttribute("data-key-needed");

const KEY = "footnote-key";

export class Problem extends Error {
  constructor(fields) {
    super(fields.detail ?? fields.title);
    this.fields = fields;
  }
}

export const away = (error) =>
  error instanceof Problem
    ? error
    : new Problem({ title: "The service cannot be reached.", hint: "Check that it runs, then try again." });

async function problemOf(reply) {
  const fields = await reply.json().catch(() => ({}));
  return new Problem({ title: `The service answered ${reply.status}.`, status: reply.status, ...fields });
}

export async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const reply = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : away(error);
  });
  if (reply.status === 401 && keyNeeded) {
    await askForKey(key ? "This key is not accepted." : "");
    return call(path, options);
  }
  if (!reply.ok) throw await problemOf(reply);
  return reply;
}

export const getJson = async (path) => (await call(path)).json();
export const postJson = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

let keyAsked = null;

function askForKey(complaint) {
  const complaintLine = byId("key-problem");
  complaintLine.textContent = complaint;
  complaintLine.hidden = !complaint;
  keyAsked ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    byId("key-form").addEventListener(
      "submit",
      () => {
        sessionStorage.setItem(KEY, byId("key").value.trim());
        byId("key").value = "";
        byId("forget-key").hidden = false;
        keyAsked = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return keyAsked;
}

// Events of a server-sent stream, as [name, data].
export async function* eventsOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (waiting + value).split(/\r?\n\r?\n/);
    waiting = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/);
      const field = (name) =>
        lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).replace(/^ /, ""));
      const data = field("data").join("\n");
      if (data) yield [field("event")[0] ?? "message", JSON.parse(data)];
    }
  }
}

export function prepareKey() {
  const forget = byId("forget-key");
  forget.hidden = !sessionStorage.getItem(KEY);
  forget.addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });
}
