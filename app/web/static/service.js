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
  if (keyNeeded && !sessionStorage.getItem(KEY)) await askForKey("");
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const reply = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : away(error);
  });
  if (reply.status === 401 && keyNeeded) {
    sessionStorage.removeItem(KEY);
    await askForKey("This key is not accepted.");
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

// Fetch a page of ours again, with the key, and take over one part of it. The server has escaped
// what is in it, scripts in parsed documents do not run, and the page's policy forbids them anyway.
export async function refetch(address, selector) {
  const reply = await call(address, { headers: { Accept: "text/html" } });
  const fetched = new DOMParser().parseFromString(await reply.text(), "text/html");
  document.title = fetched.title;
  const part = fetched.querySelector(selector);
  document.querySelector(selector).replaceWith(part);
  return { part, fetched };
}

export function prepareKey() {
  const forget = byId("forget-key");
  forget.hidden = !sessionStorage.getItem(KEY);
  forget.addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload();
  });
}

// A link cannot send a key, so the script fetches what it leads to.
export function prepareDownloads() {
  document.addEventListener("click", async (event) => {
    const link = event.target.closest("a[data-download]");
    if (!link || !keyNeeded) return;
    event.preventDefault();
    const reply = await call(link.href);
    const name = /filename\*=UTF-8''([^;]+)/i.exec(reply.headers.get("Content-Disposition") ?? "");
    const saved = document.createElement("a");
    saved.href = URL.createObjectURL(await reply.blob());
    saved.download = name ? decodeURIComponent(name[1]) : "original";
    saved.click();
    URL.revokeObjectURL(saved.href);
  });
}
