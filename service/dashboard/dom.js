// Elements from data. Text goes in as text nodes only: nothing the server sends is read as HTML.

/**
 * Make an element.
 * @param {string} tag
 * @param {Object<string, string|boolean|Function>} attributes - a function is an event listener
 *   named by its key; true is an empty attribute; false and null are left out.
 * @param {...(Node|string|number|null)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

/**
 * Make a table that scrolls within itself.
 * @param {string} caption
 * @param {Array<{title: string, number?: boolean}>} columns
 * @param {Array<{cells: Array<Node|string>, kind?: string}>} rows
 * @returns {HTMLElement}
 */
export function table(caption, columns, rows) {
  const heads = columns.map((c) =>
    element("th", { scope: "col", class: c.number ? "number" : null }, c.title));
  const body = rows.map((row) =>
    element("tr", { class: row.kind ?? null }, row.cells.map((cell, at) =>
      element("td", { class: columns[at].number ? "number" : null }, cell))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, heads)),
      element("tbody", {}, body)));
}
