// The library: collections, their documents, and files on their way in.

import { byId, copyOf, fill, link, plural } from "./elements.js";
import { away, call, getJson, keyNeeded, postJson } from "./service.js";

const POLL_MS = 700;
const UPLOADS_AT_ONCE = 3;

let chosen = "";

const say = (text) => (byId("library-status").textContent = text);
const sayProblem = (error) => {
  const { title, detail, hint } = away(error).fields;
  say([title, detail, hint].filter(Boolean).join(" "));
};
const guarded = (action) => async (event) => {
  event?.preventDefault();
  say("");
  await action(event).catch(sayProblem);
};

// --- collections ----------------------------------------------------------------------------------

async function loadCollections() {
  const { collections } = await getJson("/api/collections");
  const names = collections.map(({ name }) => name);
  if (!names.includes(chosen)) chosen = names[0] ?? "";
  const shelves = collections.map(({ name, documents }) => {
    const shelf = fill(copyOf("shelf"), { name, count: String(documents) });
    link(shelf, "name", `/?collection=${encodeURIComponent(name)}#library`);
    if (name === chosen) shelf.querySelector("a").setAttribute("aria-current", "true");
    return shelf;
  });
  byId("collections").replaceChildren(...shelves);
  const picker = byId("collection");
  const picked = picker.value;
  picker.replaceChildren(...names.map((name) => new Option(name, name)));
  picker.value = names.includes(picked) ? picked : chosen;
  byId("chosen").textContent = chosen;
  byId("delete-collection").hidden = !chosen;
}

async function addCollection(event) {
  const name = byId("new-collection").value.trim();
  await postJson("/api/collections", { name });
  event.target.reset();
  chosen = name;
  await reload();
  byId("collection").value = name;
}

async function deleteCollection() {
  if (!confirm(`Delete the collection “${chosen}” with all its documents?`)) return;
  await call(`/api/collections/${encodeURIComponent(chosen)}`, { method: "DELETE" });
  await reload();
}

// --- documents ------------------------------------------------------------------------------------

const rows = () => byId("documents").tBodies[0];

function showDocument(row, document) {
  row.dataset.id = document.id;
  row.dataset.status = document.status;
  link(row, "title", `/documents/${document.id}`);
  fill(row, {
    title: document.title,
    status: document.status,
    reason: document.reason,
    chunks: document.chunks == null ? "" : String(document.chunks),
    pages: document.pages == null ? "" : String(document.pages),
  });
  return row;
}

function showEmptiness() {
  const isEmpty = !rows().rows.length;
  byId("documents").hidden = isEmpty;
  byId("nothing").hidden = !isEmpty;
}

async function loadDocuments(cursor) {
  if (!chosen) {
    rows().replaceChildren();
    return showEmptiness();
  }
  const query = new URLSearchParams({ collection: chosen, limit: 20, ...(cursor && { cursor }) });
  const page = await getJson(`/api/documents?${query}`);
  const made = page.documents.map((document) => showDocument(copyOf("row"), document));
  if (cursor) rows().append(...made);
  else rows().replaceChildren(...made);
  made.filter(isUnderWay).forEach(follow);
  byId("more").hidden = !page.next_cursor;
  byId("more").dataset.cursor = page.next_cursor ?? "";
  showEmptiness();
}

const reload = async () => {
  await loadCollections();
  await loadDocuments();
};

const isUnderWay = (row) => ["queued", "processing"].includes(row.dataset.status);

// Ask how the document fares until it is ready or has failed, or its row has gone.
async function follow(row) {
  try {
    while (isUnderWay(row) && row.isConnected) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      showDocument(row, await getJson(`/api/documents/${row.dataset.id}`));
    }
    await loadCollections();
  } catch (error) {
    sayProblem(error);
  }
}

async function deleteDocument(event) {
  if (event.target.dataset.action !== "delete") return;
  const row = event.target.closest("tr");
  const title = row.querySelector('[data-field="title"]').textContent;
  if (!confirm(`Delete “${title}”? Its text, passages and original go with it.`)) return;
  if (row.dataset.id) {
    const removed = await (await call(`/api/documents/${row.dataset.id}`, { method: "DELETE" })).json();
    say(`Deleted “${title}” with ${plural(removed.chunks, "passage")}.`);
  }
  row.remove();
  showEmptiness();
  await loadCollections();
}

// --- files on their way in ------------------------------------------------------------------------

async function upload(file) {
  const row = fill(copyOf("row"), { title: file.name, status: "sending" });
  row.dataset.status = "sending";
  rows().prepend(row);
  showEmptiness();
  const body = new FormData();
  body.append("collection", chosen);
  body.append("file", file);
  try {
    const { document_id } = await (await call("/api/documents", { method: "POST", body })).json();
    showDocument(row, await getJson(`/api/documents/${document_id}`));
    follow(row);
  } catch (error) {
    const { title, detail } = away(error).fields;
    row.dataset.status = "failed";
    fill(row, { status: "not taken", reason: detail ?? title });
  }
}

async function uploadAll(files) {
  if (!chosen) {
    await postJson("/api/collections", { name: "default" });
    await loadCollections();
  }
  const waiting = [...files];
  const sender = async () => {
    while (waiting.length) await upload(waiting.shift());
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, sender));
}

export function prepareLibrary() {
  chosen = byId("chosen").textContent;
  byId("collection-form").addEventListener("submit", guarded(addCollection));
  byId("delete-collection").addEventListener("click", guarded(deleteCollection));
  byId("documents").addEventListener("click", (event) => deleteDocument(event).catch(sayProblem));
  byId("more").addEventListener("click", guarded(() => loadDocuments(byId("more").dataset.cursor)));
  const form = byId("upload-form");
  const files = byId("files");
  files.addEventListener("change", guarded(async () => {
    const picked = [...files.files];
    files.value = "";
    await uploadAll(picked);
  }));
  for (const kind of ["dragenter", "dragover"]) form.addEventListener(kind, () => form.classList.add("over"));
  for (const kind of ["dragleave", "drop"]) form.addEventListener(kind, () => form.classList.remove("over"));
  if (keyNeeded) reload().catch(sayProblem);
  else [...rows().rows].filter(isUnderWay).forEach(follow);
}
