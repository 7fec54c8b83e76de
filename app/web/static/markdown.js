// Markdown to DOM nodes, the small part of it that answers and passages use. Everything from the
// text becomes a text node: raw HTML is shown, images and links are reduced to their words.

const MARK_START = "\ue000";
const MARK_END = "\ue001";
const MARKS = /([\ue000\ue001])/;

// What opens or closes a block must stay at its place, so a highlight begins after it.
const BLOCK_OPENING = /^[ \t]*(?:(?:[-*+]|\d{1,9}[.)]|#{1,6}|>)[ \t]+|\|[ \t]*|(?:`{3,}|~{3,})[^\n]*\n)*/;
const BLOCK_CLOSING = /[ \t]*\|[ \t]*$|\n(?:`{3,}|~{3,})[ \t]*$/;

const INLINE = new RegExp(
  [
    "(?<escaped>\\\\[!-/:-@[-`{-~])",
    "(?<ticks>`+)(?<code>.+?)\\k<ticks>(?!`)",
    "(?<strong>\\*\\*(?=\\S)(?<bold>.+?\\S?)\\*\\*|__(?=\\S)(?<bold2>.+?\\S?)__(?!\\w))",
    "(?<emphasis>\\*(?=[^\\s*])(?<slanted>[^*]+?)\\*|(?<!\\w)_(?=[^\\s_])(?<slanted2>[^_]+?)_(?!\\w))",
    "!?\\[(?<words>[^\\[\\]]*)\\]\\((?:[^()\\s]|\\([^()\\s]*\\))*(?:\\s+\"[^\"]*\")?\\)",
    "\\s*\\[(?<marker>\\d{1,3})\\]",
  ].join("|"),
  "s",
);

/**
 * @param {string} text
 * @param {{name?: string, known?: (number: number) => boolean, highlights?: [number, number][]}} options
 *   `known` says which markers `[n]` are footnotes; they link to the fragment `NAME-note-n`.
 *   `highlights` are character spans of the text to mark.
 */
export function renderMarkdown(text, { name = "", known = () => false, highlights = [] } = {}) {
  const state = { name, known, seen: new Set(), highlighting: false, depth: 0 };
  const lines = withMarks(text.replaceAll(/[\ue000\ue001]/g, ""), highlights).split("\n");
  return blocks(lines, state);
}

function withMarks(text, highlights) {
  const clipped = highlights
    .map(([start, end]) => [Math.max(0, start), Math.min(text.length, end)])
    .sort(([a], [b]) => a - b);
  let result = "";
  let position = 0;
  for (let [start, end] of clipped) {
    start = Math.max(start, position);
    const beginsLine = !text.slice(text.lastIndexOf("\n", start - 1) + 1, start).trim();
    if (beginsLine) start += text.slice(start, end).match(BLOCK_OPENING)[0].length;
    end = start + text.slice(start, end).trimEnd().length;
    const closing = text.slice(start, end).match(BLOCK_CLOSING);
    if (closing) end = start + closing.index;
    if (start >= end) continue;
    result += text.slice(position, start) + MARK_START + text.slice(start, end) + MARK_END;
    position = end;
  }
  return result + text.slice(position);
}

// What is nested more deeply than anybody would read is shown as it is written.
const MAX_DEPTH = 20;

// --- blocks ---------------------------------------------------------------------------------------

const FENCE = /^\s*(`{3,}|~{3,})/;
const HEADING = /^\s{0,3}#{1,6}\s+(.*?)\s*#*$/;
const QUOTED = /^\s{0,3}>\s?/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+/;
const ROW = /^\s*\|.*\|\s*[\ue001]?$/;
const RULE_ROW = /^\s*\|?(\s*:?-+:?\s*\|)+\s*:?-*:?\s*$/;
const BREAK = /^\s{0,3}([-*_])(\s*\1){2,}\s*$/;
const startsBlock = (line) => [FENCE, HEADING, QUOTED, ITEM, ROW, BREAK].some((form) => form.test(line));

function element(tag, children, attributes = {}) {
  const made = document.createElement(tag);
  made.append(...[children].flat());
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}

function blocks(lines, state) {
  const made = document.createDocumentFragment();
  if (state.depth >= MAX_DEPTH) {
    made.append(element("p", plain(lines.join("\n"), state)));
    return made;
  }
  state.depth += 1;
  const take = (accepts) => {
    const taken = [];
    while (lines.length && accepts(lines[0], taken)) taken.push(lines.shift());
    return taken;
  };
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) {
      lines.shift();
    } else if (FENCE.test(line)) {
      const fence = lines.shift().match(FENCE)[1];
      const body = take((next) => !next.trim().startsWith(fence));
      lines.shift();
      made.append(element("pre", element("code", plain(body.join("\n"), state))));
    } else if (HEADING.test(line)) {
      made.append(element("p", inline(lines.shift().match(HEADING)[1], state), { class: "heading" }));
    } else if (BREAK.test(line)) {
      lines.shift();
      made.append(element("hr", []));
    } else if (QUOTED.test(line)) {
      const inner = take((next) => QUOTED.test(next)).map((next) => next.replace(QUOTED, ""));
      made.append(element("blockquote", blocks(inner, state)));
    } else if (ITEM.test(line)) {
      made.append(list(take, lines, state));
    } else if (ROW.test(line)) {
      made.append(table(take((next) => ROW.test(next)), state));
    } else {
      const first = lines.shift();
      const body = [first, ...take((next) => next.trim() && !startsBlock(next))];
      made.append(element("p", inline(body.map((part) => part.trim()).join("\n"), state)));
    }
  }
  state.depth -= 1;
  return made;
}

function list(take, lines, state) {
  const [, indent, sign] = lines[0].match(ITEM);
  const isOrdered = /\d/.test(sign);
  const items = [];
  const isSibling = (line) => {
    const found = line.match(ITEM);
    return found && found[1].length <= indent.length + 1 && /\d/.test(found[2]) === isOrdered;
  };
  while (lines.length && isSibling(lines[0])) {
    const width = lines[0].match(ITEM)[0].length;
    const body = [lines.shift().slice(width)];
    body.push(
      ...take((next, taken) => !isSibling(next) && (/^\s+\S/.test(next) || (!next.trim() ? !taken.length || taken.at(-1).trim() : !startsBlock(next) && (taken.at(-1) ?? body[0]).trim()))).map(
        (next) => next.replace(new RegExp(`^\\s{0,${width}}`), ""),
      ),
    );
    while (lines.length > 1 && !lines[0].trim() && isSibling(lines[1])) lines.shift();
    const inner = blocks(body, state);
    const only = inner.children.length === 1 && inner.firstElementChild.tagName === "P" ? [...inner.firstElementChild.childNodes] : inner;
    items.push(element("li", only));
  }
  const start = Number.parseInt(sign, 10);
  return element(isOrdered ? "ol" : "ul", items, isOrdered && start !== 1 ? { start } : {});
}

function table(rows, state) {
  const cells = (row) => row.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
  const hasHead = rows.length > 1 && RULE_ROW.test(rows[1]);
  const line = (row, tag) => element("tr", cells(row).map((cell) => element(tag, inline(cell.trim(), state))));
  const body = rows.filter((row, index) => !RULE_ROW.test(row) && !(hasHead && index === 0));
  return element("table", [
    ...(hasHead ? [element("thead", line(rows[0], "th"))] : []),
    element("tbody", body.map((row) => line(row, "td"))),
  ]);
}

// --- inside a block -------------------------------------------------------------------------------

function inline(text, state) {
  const made = [];
  let rest = text;
  for (let found = rest.match(INLINE); found; found = rest.match(INLINE)) {
    made.push(...plain(rest.slice(0, found.index), state));
    const { escaped, code, bold, bold2, slanted, slanted2, words, marker } = found.groups;
    if (escaped) made.push(...plain(escaped[1], state));
    else if (code !== undefined) made.push(element("code", plain(code, state)));
    else if (bold ?? bold2) made.push(element("strong", inline(bold ?? bold2, state)));
    else if (slanted ?? slanted2) made.push(element("em", inline(slanted ?? slanted2, state)));
    else if (marker) made.push(footnote(Number(marker), found[0], state));
    else made.push(...inline(words ?? "", state));
    rest = rest.slice(found.index + found[0].length);
  }
  made.push(...plain(rest, state));
  return made;
}

function footnote(number, written, state) {
  if (!state.known(number)) return document.createTextNode(written);
  const attributes = { class: "marker", href: `#${state.name}-note-${number}`, "aria-label": `Footnote ${number}` };
  if (!state.seen.has(number)) attributes.id = `${state.name}-mark-${number}`;
  state.seen.add(number);
  return element("sup", element("a", String(number), attributes));
}

// Text nodes; inside a highlight each becomes a mark of its own, for highlights may span blocks.
function plain(text, state) {
  const made = [];
  for (const piece of text.split(MARKS)) {
    if (piece === MARK_START || piece === MARK_END) state.highlighting = piece === MARK_START;
    else if (piece) made.push(state.highlighting ? element("mark", piece) : document.createTextNode(piece));
  }
  return made;
}
