// The library: collections, their documents, and files on their way in. After each change the
// server draws it again.

import { byId, copyOf, fill, link, plural } from "./elements.js";
import { away, call, getJson, keyNeeded, postJson, refetch } from "./service.js";

const POLL_MS = 700;
const UPLOADS_AT_ONCE = 3;
const DEFAULT_COLLECTION = "default";

const library = () => byId("library");
const chosen = () => library().dataset.collection;
const rows = () => byId("documents").tBodies[0];
const addressOf = (collection) => (collection ? `/?${new URLSearchParams({ collection })}` : "/");

const say = (text) => (byId("library-status").textContent = text);
const sayProblem = (error) => {
  const { title, detail, hint } = away(error).fields;
  say([detail ?? title, hint].filter(Boolean).join(" "));
};

async function show(address, message = "") {
  const { fetched } = await refetch(address, "#library");
  const picker = byId("collection");
  const picked = picker.value;
  picker.replaceChildren(...fetched.getElementById("collection").children);
  if ([...picker.options].some((option) => option.value === picked)) picker.value = picked;
  say(message);
  followAll();
}

// --- documents under way --------------------------------------------------------------------------

const isUnderWay = (row) => ["queued", "processing"].includes(row.dataset.status);
const followAll = () => [...rows().rows].filter(isUnderWay).forEach(follow);

function update(row, { id, title, status, reason, chunks, pages }) {
  row.dataset.id = id;
  row.dataset.status = status;
  link(row, "title", `/documents/${id}`);
  fill(row, { title, status, reason, chunks: chunks ? String(chunks) : "", pages: pages ? String(pages) : "" });
}

// Ask how the document fares until it is ready or has failed, or its row has gone.
async function follow(row) {
  try {
    while (isUnderWay(row) && row.isConnected) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      update(row, await getJson(`/api/documents/${row.dataset.id}`));
    }
    const isLast = row.isConnected && ![...rows().rows].some((other) => isUnderWay(other) || other.dataset.status === "sending");
    if (isLast) await show(addressOf(chosen()), byId("library-status").textContent);
  } catch (error) {
    sayProblem(error);
  }
}

// --- files on their way in ------------------------------------------------------------------------

async function upload(file, collection) {
  const row = fill(copyOf("row"), { title: file.name, status: "sending" });
  row.dataset.status = "sending";
  rows().prepend(row);
  byId("documents").hidden = false;
  const body = new FormData();
  body.append("collection", collection);
  body.append("file", file);
  try {
    const { document_id } = await (await call("/api/documents", { method: "POST", body })).json();
    for (const older of rows().querySelectorAll(`[data-id="${document_id}"]`)) older.remove();
    update(row, await getJson(`/api/documents/${document_id}`));
    follow(row);
  } catch (error) {
    const { title, detail } = away(error).fields;
    row.dataset.status = "failed";
    fill(row, { status: "not taken", reason: detail ?? title });
  }
}

async function uploadAll(files) {
  const waiting = [...files];
  const collection = chosen() || DEFAULT_COLLECTION;
  const sender = async () => {
    while (waiting.length) await upload(waiting.shift(), collection);
  };
  await Promise.all(Array.from({ length: UPLOADS_AT_ONCE }, sender));
}

// --- what can be done -----------------------------------------------------------------------------

async function addCollection(form) {
  const name = new FormData(form).get("name");
  await postJson("/api/collections", { name });
  await show(addressOf(name));
  byId("collection").value = name;
}

async function deleteCollection() {
  const name = chosen();
  if (!confirm(`Delete the collection “${name}” with all its documents?`)) return;
  const removed = await (await call(`/api/collections/${encodeURIComponent(name)}`, { method: "DELETE" })).json();
  await show("/", `Deleted “${name}” with ${plural(removed.documents, "document")}.`);
}

async function deleteDocument(row) {
  const title = row.querySelector('[data-field="title"]').textContent;
  if (!row.dataset.id) return row.remove();
  if (!confirm(`Delete “${title}”? Its text, passages and original go with it.`)) return;
  const removed = await (await call(`/api/documents/${row.dataset.id}`, { method: "DELETE" })).json();
  await show(addressOf(chosen()), `Deleted “${title}” with ${plural(removed.chunks, "passage")}.`);
}

function act(event) {
  const pressed = event.target.closest("#library [data-action], #library a[href^='/?']");
  if (!pressed) return;
  if (pressed.dataset.action === "delete-collection") return deleteCollection();
  if (pressed.dataset.action === "delete-document") return deleteDocument(pressed.closest("tr"));
  event.preventDefault();
  history.replaceState(null, "", pressed.href);
  return show(pressed.href);
}

// The library is drawn anew again and again, so the document listens for it.
export function prepareLibrary() {
  const listen = (kind, action) =>
    document.addEventListener(kind, async (event) => {
      try {
        await action(event);
      } catch (error) {
        sayProblem(error);
      }
    });
  listen("click", act);
  listen("submit", (event) => {
    if (event.target.id !== "collection-form") return;
    event.preventDefault();
    return addCollection(event.target);
  });
  listen("change", (event) => {
    if (event.target.id !== "files") return;
    const files = [...event.target.files];
    event.target.value = "";
    return uploadAll(files);
  });
  const over = (event, isOver) => event.target.closest?.("#upload-form")?.classList.toggle("over", isOver);
  document.addEventListener("dragover", (event) => over(event, true));
  for (const kind of ["dragleave", "drop"]) document.addEventListener(kind, (event) => over(event, false));
  if (keyNeeded) show(location.href).catch(sayProblem);
  else followAll();
}
