// Makes elements. Text of the data becomes text nodes and attribute values here, never markup; `h` and `svg` are the only makers.

const drawings = new Map(); // element -> the function that draws into it

function h(tag, attributes, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

function svg(tag, attributes, ...children) {
  return furnish(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

/** Attributes, `on...` listeners, and children, of which strings become text and what is null or false is left out. */
function furnish(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function fill(id, ...nodes) {
  byId(id).querySelector(".part").replaceChildren(...nodes.filter(Boolean));
}

/** What stands in place of an empty part. */
function missing(text) {
  return h("p", { class: "missing" }, prose(text));
}

/** Text in which `this` is code. */
function prose(text) {
  return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part));
}

/** A run or system with its colour. */
function named(name) {
  return h("span", { class: "named" }, h("span", { class: `key c${slot(name)}`, "aria-hidden": "true" }), h("bdi", {}, name));
}

/** A cell of numbers. */
function num(content) {
  return h("td", { class: "num" }, content);
}

/** Rows of text, elements or whole cells; the first of each row is its head. */
function table(caption, heads, rows, kind = "") {
  const asHead = (scope) => (content) => {
    const isCell = content instanceof Element && content.tagName === "TD";
    return h("th", { scope, class: isCell ? content.className : "" }, isCell ? [...content.childNodes] : content);
  };
  const asCell = (content) => (content instanceof Element && content.tagName === "TD" ? content : h("td", {}, content));
  const body = rows.map(([first, ...rest]) => h("tr", {}, asHead("row")(first), rest.map(asCell)));
  const box = h("div", { class: "scroll", role: "region", "aria-label": caption },
    h("table", { class: kind }, h("caption", {}, caption), h("thead", {}, h("tr", {}, heads.map(asHead("col")))), h("tbody", {}, body)));
  // A stop of the Tab key only where there is something to scroll.
  drawings.set(box, () => (box.scrollWidth > box.clientWidth ? box.setAttribute("tabindex", "0") : box.removeAttribute("tabindex")));
  return box;
}

function setOptions(select, labels, chosen, values = labels.map((_, i) => i)) {
  select.replaceChildren(...labels.map((label, i) => h("option", { value: values[i] }, label)));
  select.value = chosen;
  return select;
}

/** Draw again what is still on the page; forget the rest. */
function redraw() {
  for (const [node, draw] of drawings) {
    if (!node.isConnected) drawings.delete(node);
    else draw();
  }
}

/** Rows are [name with a colour or "", what, value]. */
function showTip(title, rows, [x, y]) {
  const tip = byId("tip");
  tip.replaceChildren(h("b", { dir: "auto" }, title), ...rows.map(([name, what, value]) =>
    h("div", {}, h("span", {}, name && named(name), what), h("strong", {}, value))));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? x - 14 - width : x + 14;
  tip.style.left = `${clamp(left, 8, innerWidth - width - 8)}px`;
  tip.style.top = `${clamp(y + 8, 8, innerHeight - height - 8)}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

/** A place inside an element, in the window's pixels. */
function placeIn(node, x, y) {
  const box = node.getBoundingClientRect();
  return [box.left + x, box.top + y];
}

/** A frame of horizontal lines with their values, for both kinds of chart. */
function valueLines(y, from, to) {
  return ticks(y.domain, 4).map((v) => [svg("line", { class: "grid", x1: from, x2: to, y1: y(v), y2: y(v) }),
    svg("text", { x: from - 7, y: y(v) + 4, "text-anchor": "end" }, compact(v))]);
}

function picture(width, height, ...children) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, children);
}
