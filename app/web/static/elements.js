// Finding elements, and filling copies of the templates that the server rendered empty.
// Values become text or nodes, never markup.

export const byId = (id) => document.getElementById(id);

export const copyOf = (name) => {
  const content = byId(`${name}-template`).content;
  return (content.querySelector("tr") ?? content.firstElementChild).cloneNode(true);
};

export function fill(element, values) {
  for (const [name, value] of Object.entries(values)) {
    const slot = element.querySelector(`[data-field="${name}"]`);
    if (slot) slot.replaceChildren(value ?? "");
  }
  return element;
}

export const link = (element, field, href) => element.querySelector(`[data-field="${field}"]`).setAttribute("href", href);
export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
