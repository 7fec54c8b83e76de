// As much of a document as the page's renderer needs. Reads [module, [[text, options], …]] as JSON
// and writes what each text becomes.

class Fragment {
  childNodes = [];
  append(...nodes) {
    for (const node of nodes) {
      if (typeof node === "string") this.childNodes.push(document.createTextNode(node));
      else if (node instanceof Fragment && !node.tagName) this.childNodes.push(...node.childNodes);
      else this.childNodes.push(node);
    }
  }
  get children() {
    return this.childNodes.filter((node) => node instanceof Fragment);
  }
  get firstElementChild() {
    return this.children[0];
  }
  get html() {
    return this.childNodes.map((node) => node.html).join("");
  }
}

class Element extends Fragment {
  attributes = {};
  constructor(name) {
    super();
    this.tagName = name.toUpperCase();
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  get html() {
    const name = this.tagName.toLowerCase();
    const attributes = Object.entries(this.attributes).map(([key, value]) => ` ${key}="${value}"`).join("");
    return name === "hr" ? `<hr${attributes}>` : `<${name}${attributes}>${super.html}</${name}>`;
  }
}

const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

globalThis.document = {
  createElement: (name) => new Element(name),
  createDocumentFragment: () => new Fragment(),
  createTextNode: (text) => ({ html: escape(text) }),
};

const read = [];
for await (const piece of process.stdin) read.push(piece);
const [path, cases] = JSON.parse(Buffer.concat(read).toString("utf8"));
const { renderMarkdown } = await import(path);
const rendered = cases.map(([text, { numbers = [], highlights = [] }]) =>
  renderMarkdown(text, { name: "e1", known: (number) => numbers.includes(number), highlights }).html,
);
process.stdout.write(JSON.stringify(rendered));
