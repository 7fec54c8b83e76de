// Asking: the answer as it streams, and its footnotes in the margin.

import { byId, copyOf, fill, link, plural } from "./elements.js";
import { renderMarkdown } from "./markdown.js";
import { Problem, away, eventsOf, postJson } from "./service.js";

let conversation = null;
let running = null;
const problemBox = (error) => fill(copyOf("problem"), away(error).fields);

let exchanges = document.querySelectorAll(".exchange").length;

const placeOf = (source) => ({
  title: source.title,
  heading: (source.heading ?? []).filter((part) => part !== source.title).join(" › "),
  page: source.page ? `page ${source.page}` : "",
});
const hrefOf = ({ document_id, start, end }) => `/documents/${document_id}?start=${start}&end=${end}#cited`;

// The service counts characters, scripts count UTF-16 units.
const units = (text, characters) => Array.from(text).slice(0, Math.max(0, characters)).join("").length;

// One answer on the page, drawn again whenever more of it has come.
class Exchange {
  constructor(question) {
    this.name = `e${++exchanges}`;
    this.text = "";
    this.hits = [];
    this.citations = [];
    this.element = fill(copyOf("exchange"), { question });
    this.element.setAttribute("aria-busy", "true");
    byId("answers").prepend(this.element);
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.draw();
    });
  }

  draw() {
    const cited = new Set(this.citations.map((citation) => citation.marker));
    const known = (number) => cited.has(number) || number <= this.hits.length;
    fill(this.element, { answer: renderMarkdown(this.text, { name: this.name, known }) });
  }

  cite(citation) {
    this.citations.push(citation);
    const hit = this.hits[citation.marker - 1] ?? citation;
    const notes = this.element.querySelector('[data-field="notes"]');
    const id = `${this.name}-note-${citation.marker}`;
    let note = byId(id);
    if (!note) {
      note = fill(copyOf("note"), { ...placeOf({ ...hit, ...citation }), back: String(citation.marker) });
      note.id = id;
      note.dataset.marker = citation.marker;
      link(note, "back", `#${this.name}-mark-${citation.marker}`);
      link(note, "title", hrefOf(citation));
      note.querySelector('[data-field="back"]').setAttribute("aria-label", `Footnote ${citation.marker}, back to the text`);
      const after = [...notes.children].find((other) => Number(other.dataset.marker) > citation.marker);
      notes.insertBefore(note, after ?? null);
    }
    const quotes = this.citations.filter((other) => other.marker === citation.marker);
    const whole = (other) => renderMarkdown(other.quote, { highlights: [[0, other.quote.length]] });
    const quote = document.createDocumentFragment();
    quote.append(...quotes.map(whole));
    fill(note, { quote });
    if (hit.text) {
      const highlights = quotes.map((other) => [
        units(hit.text, other.start - hit.start),
        units(hit.text, other.end - hit.start),
      ]);
      fill(note, { passage: renderMarkdown(hit.text, { highlights }) });
    }
    note.querySelector("details").hidden = !hit.text;
    this.drawSoon();
  }

  finish(answer) {
    cancelAnimationFrame(this.frame);
    this.text = answer.answer;
    if (!this.citations.length) for (const citation of answer.citations) this.cite(citation);
    cancelAnimationFrame(this.frame);
    this.draw();
    this.element.dataset.mode = answer.mode;
    this.element.dataset.grounded = answer.grounded;
    fill(this.element, {
      model: answer.model ?? "a model",
      notice: answer.notice,
      took: answer.took_ms === undefined ? "" : `${(answer.took_ms / 1000).toFixed(1)} s.`,
    });
    const cited = new Set(this.citations.map((citation) => citation.marker));
    const further = this.hits.filter((_, index) => !cited.has(index + 1)).map((hit) => {
      const item = fill(copyOf("further"), placeOf(hit));
      link(item, "title", hrefOf(hit));
      return item;
    });
    const list = document.createDocumentFragment();
    list.append(...further);
    fill(this.element, { further: list });
    this.element.querySelector(".further").hidden = !further.length;
  }

  end() {
    this.element.setAttribute("aria-busy", "false");
  }
}

async function ask(question) {
  const progress = byId("progress");
  running = new AbortController();
  byId("ask-button").disabled = true;
  byId("stop-button").hidden = false;
  progress.textContent = "Searching your documents …";
  for (const old of byId("answers").querySelectorAll(".problem")) old.remove();
  const exchange = new Exchange(question);
  try {
    const request = { question, collection: byId("collection").value, conversation_id: conversation, stream: true };
    const reply = await postJson("/api/chat", request, running.signal);
    let complete = false;
    for await (const [name, data] of eventsOf(reply)) {
      if (name === "sources") {
        exchange.hits = data.hits;
        progress.textContent = `Reading ${plural(data.hits.length, "passage")} …`;
      } else if (name === "queue") {
        progress.textContent = `Place ${data.position} in line, about ${Math.ceil(data.wait_ms / 1000)} s …`;
      } else if (name === "token") {
        exchange.text += data.text;
        exchange.drawSoon();
      } else if (name === "citation") {
        exchange.cite(data);
      } else if (name === "done") {
        exchange.finish(data);
        conversation = data.conversation_id ?? null;
        complete = true;
      } else if (name === "error") {
        throw new Problem(data);
      }
    }
    if (!complete) throw new Problem({ title: "The answer broke off.", hint: "Ask again." });
    byId("afresh-button").hidden = !conversation;
    progress.textContent = `Answered, with ${plural(exchange.element.querySelectorAll(".note").length, "footnote")}.`;
  } catch (error) {
    progress.textContent = "";
    if (error.name === "AbortError") {
      progress.textContent = "Stopped.";
    } else if (exchange.text) {
      exchange.element.append(problemBox(error));
    } else {
      exchange.element.replaceWith(problemBox(error));
      byId("question").value ||= question;
    }
  } finally {
    exchange.end();
    running = null;
    byId("ask-button").disabled = false;
    byId("stop-button").hidden = true;
  }
}

export function prepareAsking() {
  const form = byId("ask-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const question = byId("question").value.trim();
    if (!question || running) return;
    byId("question").value = "";
    ask(question);
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  byId("stop-button").addEventListener("click", () => running?.abort());
  byId("afresh-button").addEventListener("click", () => {
    conversation = null;
    byId("answers").replaceChildren();
    byId("afresh-button").hidden = true;
    byId("progress").textContent = "";
    byId("question").focus();
  });
  // A marker and its note light up together.
  const lightUp = (event) => {
    const hash = event.target.closest?.(".marker")?.hash;
    if (hash) document.getElementById(hash.slice(1))?.classList.toggle("lit", event.type === "pointerover" || event.type === "focusin");
  };
  for (const kind of ["pointerover", "pointerout", "focusin", "focusout"]) byId("answers").addEventListener(kind, lightUp);
}
