// Creates elements: `h` makes HTML, `svg` makes SVG. Text from the data only ever becomes a text
// node or an attribute value, never markup.

const drawings = new Map(); // element -> the function that draws into it

function h(tag, attributes, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Add attributes, `on...` listeners and children: strings as text, null and false not at all. */
function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false) node.setAttribute(name, value);
  }
  const isShown = (child) => child !== null && child !== undefined && child !== false;
  node.append(...children.flat(Infinity).filter(isShown));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function fill(id, ...nodes) {
  byId(id).querySelector(".part").replaceChildren(...nodes.filter(Boolean));
}

/** A message in place of an empty part. */
function missing(text) {
  return h("p", { class: "missing" }, prose(text));
}

/** Convert text in `backticks` to code. */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** The name of a run or system, with its colour. */
function named(name) {
  const colour = h("span", { class: `key c${slot(name)}`, "aria-hidden": "true" });
  return h("span", { class: "named" }, colour, h("bdi", {}, name));
}

/** A table cell with a number. */
function num(content) {
  return h("td", { class: "num" }, content);
}

/** A table of text, elements or whole cells. The first entry of each row is its header. */
function table(caption, heads, rows, kind = "") {
  const isCell = (content) => content instanceof Element && content.tagName === "TD";
  const asHead = (scope) => (content) => h("th",
    { scope, class: isCell(content) ? content.className : "" },
    isCell(content) ? [...content.childNodes] : content);
  const asCell = (content) => (isCell(content) ? content : h("td", {}, content));
  const body = rows.map(([first, ...rest]) => h("tr", {}, asHead("row")(first), rest.map(asCell)));
  const box = h("div", { class: "scroll", role: "region", "aria-label": caption },
    h("table", { class: kind }, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map(asHead("col")))), h("tbody", {}, body)));
  // The Tab key stops here only if the table can be scrolled.
  drawings.set(box, () => {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
  });
  return box;
}

function setOptions(select, labels, chosen, values = labels.map((_, i) => i)) {
  select.replaceChildren(...labels.map((label, i) => h("option", { value: values[i] }, label)));
  select.value = chosen;
  return select;
}

/** Draw all charts on the page again, and forget those that have been removed. */
function redraw() {
  for (const [node, draw] of drawings) {
    if (!node.isConnected) drawings.delete(node);
    else draw();
  }
}

/** Show a tooltip at a place in the window. Each row is [name with a colour or "", note, value]. */
function showTip(title, rows, [x, y]) {
  const tip = byId("tip");
  tip.replaceChildren(h("b", { dir: "auto" }, title), ...rows.map(([name, note, value]) =>
    h("div", {}, h("span", {}, name && named(name), note), h("strong", {}, value))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? x - 14 - width : x + 14;
  tip.style.left = `${clamp(left, 8, innerWidth - width - 8)}px`;
  tip.style.top = `${clamp(y + 8, 8, innerHeight - height - 8)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** Convert a place inside an element to pixels of the window. */
function placeIn(node, x, y) {
  const box = node.getBoundingClientRect();
  return [box.left + x, box.top + y];
}

/** Horizontal grid lines with their values. */
function valueLines(y, from, to) {
  return ticks(y.domain, 4).map((v) => [
    svg("line", { class: "grid", x1: from, x2: to, y1: y(v), y2: y(v) }),
    svg("text", { x: from - 7, y: y(v) + 4, "text-anchor": "end" }, compact(v))]);
}

function picture(width, height, ...children) {
  const attributes = { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" };
  return svg("svg", attributes, children);
}
