// Heat maps of the attention weights of single sentences. A map consists of at most SHADES paths,
// one per shade, however many cells it has, so that long sentences are drawn as fast as short ones.
// The cell under the pointer is computed from its position.

const SHADES = 24;
const KINDS = {
  encoder: "Encoder self-attention",
  decoder: "Masked decoder self-attention",
  cross: "Cross-attention",
};
const NO_ATTENTION = "This test set has no attention maps. They come from a model: " +
  "make the report from a run or model folder, with `--maps` above 0.";
const MEAN = -1; // stands for the mean in place of a head number

function showAttention(test) {
  const entries = test?.attention ?? [];
  if (!entries.length) return fill("attention", missing(test ? NO_ATTENTION : NO_TEST));
  const map = h("div", { class: "map", tabindex: "0", role: "group",
    "aria-label": "Heat map of attention weights. Arrow keys read single weights." });
  const chart = { plot: map };
  const pick = {};
  const update = () => {
    offerAttention(pick, test, entries);
    Object.assign(chart, heatMapOf(entries[view.entry]), { at: null });
    drawHeatMap(chart);
  };
  const field = (label, key, asValue = Number) => {
    const onchange = () => { view[key] = asValue(pick[key].value); update(); };
    pick[key] = h("select", { onchange });
    return h("label", { class: key === "entry" ? "grow" : "" }, label, pick[key]);
  };
  drawings.set(map, () => drawHeatMap(chart));
  listenToHeatMap(chart);
  fill("attention",
    h("div", { class: "controls" },
      field("Sentence", "entry"), field("Kind", "kind", String),
      field("Layer", "layer"), field("Head", "head")),
    h("p", { class: "note" }, "Rows attend to columns; the weights of each row add up to 1. " +
      "Click the map to read single weights with the arrow keys."),
    scaleOfShades(), h("div", { class: "map-scroll" }, map));
  return update();
}

/** Fill the select boxes for this sentence; a choice that it does not have falls back. */
function offerAttention(pick, test, entries) {
  const entry = entries[view.entry];
  const kinds = Object.keys(KINDS).filter((kind) => entry[kind]);
  if (!kinds.includes(view.kind)) view.kind = kinds.at(-1);
  const [layers, heads] = entry[view.kind]?.shape ?? [0, 0];
  // By default the second to last layer, whose weights align words best.
  view.layer = clamp(view.layer ?? layers - 2, 0, layers - 1);
  if (view.head >= heads) view.head = MEAN;
  const source = (map) =>
    test.sentences?.src?.[map.sentence] ?? (map.src_tokens ?? []).join(" ");
  const title = (map) => `${number(map.sentence + 1, 0)}, `
    + `${test.systems?.[map.system]?.name ?? ""}: ${shortened(source(map), 70)}`;
  setOptions(pick.entry, entries.map(title), view.entry);
  setOptions(pick.kind, kinds.map((kind) => KINDS[kind]), view.kind, kinds);
  const layerNames = Array.from({ length: layers }, (_, i) => `Layer ${i + 1}`);
  setOptions(pick.layer, layerNames, view.layer);
  const headNames = Array.from({ length: heads }, (_, i) => `Head ${i + 1}`);
  setOptions(pick.head, ["Mean of heads", ...headNames], view.head, [MEAN, ...headNames.keys()]);
}

function heatMapOf(entry) {
  const { src_tokens: src = [], read_tokens: read = [], written_tokens: written = [] } = entry;
  const sides = { encoder: [src, src], decoder: [read, read], cross: [written, src] };
  const [rows, columns] = sides[view.kind] ?? [[], []];
  return { rows, columns, weights: weightsOf(entry[view.kind], rows.length, columns.length) };
}

/** The weights of the chosen layer, row by row: of one head, or the mean of all. */
function weightsOf(block, rows, columns) {
  const [, heads, queries, keys] = block?.shape ?? [0, 0, 0, 0];
  const bytes = Uint8Array.from(atob(block?.data ?? ""), (letter) => letter.charCodeAt(0));
  const chosenHeads = view.head === MEAN ? [...Array(heads).keys()] : [view.head];
  const byte = (head, r, c) => bytes[((view.layer * heads + head) * queries + r) * keys + c] ?? 0;
  const total = (r, c) => chosenHeads.reduce((sum, head) => sum + byte(head, r, c), 0);
  const exists = (r, c) => r < queries && c < keys;
  return Float32Array.from({ length: rows * columns }, (_, i) => {
    const [r, c] = [Math.floor(i / columns), i % columns];
    return exists(r, c) ? total(r, c) / 255 / chosenHeads.length : 0;
  });
}

function drawHeatMap(chart) {
  const { plot, rows, columns, weights } = chart;
  const room = plot.parentElement.clientWidth;
  const tokens = [...rows, ...columns];
  const longest = Math.max(3, ...tokens.map((token) => Array.from(token).length));
  const edge = Math.min(room < 500 ? 84 : 124, 16 + 7.5 * longest); // width of the labels
  const size = clamp(Math.floor((room - edge - 4) / columns.length), 12, 26);
  const letters = (edge - 10) / 7;
  const middle = (i) => edge + (i + 0.5) * size + 4;
  const names = {
    rows: rows.map((token, r) =>
      svg("text", { x: edge - 6, y: middle(r), "text-anchor": "end" }, shortened(token, letters))),
    columns: columns.map((token, c) =>
      svg("text", { transform: `translate(${middle(c)},${edge - 6}) rotate(-90)` },
        shortened(token, letters))),
  };
  const cell = svg("rect", { class: "cell", width: size, height: size, visibility: "hidden" });
  Object.assign(chart, { edge, size, names, cell });
  const [width, height] = [columns.length * size, rows.length * size];
  plot.replaceChildren(picture(edge + width + 2, edge + height + 2, names.rows, names.columns,
    svg("rect", { class: "frame", x: edge, y: edge, width, height }),
    shades(weights, columns.length, size, edge), cell));
}

function shades(weights, columns, size, edge) {
  const paths = Array.from({ length: SHADES + 1 }, () => []);
  for (const [i, weight] of weights.entries()) {
    const [x, y] = [edge + (i % columns) * size, edge + Math.floor(i / columns) * size];
    paths[Math.round(darkness(weight) * SHADES)].push(`M${x},${y}h${size}v${size}h${-size}z`);
  }
  return paths.map((path, shade) => shade > 0 && path.length > 0 &&
    svg("path", { class: "shade", "fill-opacity": shade / SHADES, d: path.join("") }));
}

/** The opacity of a weight. The square root makes small weights such as 0.02 and 0.1 differ. */
function darkness(weight) {
  return Math.sqrt(clamp(weight, 0, 1));
}

function scaleOfShades() {
  const square = (weight) => svg("svg", { "aria-hidden": "true" },
    svg("rect", { width: 16, height: 12, "fill-opacity": darkness(weight) }));
  const step = (weight) => h("span", {}, square(weight), String(weight));
  return h("p", { class: "scale" }, "Weight", [0.01, 0.05, 0.2, 0.5, 1].map(step));
}

function listenToHeatMap(chart) {
  const { plot } = chart;
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const cell = (at, start) => Math.floor((at - start - chart.edge) / chart.size);
    readHeatMap(chart, cell(event.clientY, box.top), cell(event.clientX, box.left));
  });
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [r, c] = chart.at ? [chart.at[0] + move[0], chart.at[1] + move[1]] : [0, 0];
    readHeatMap(chart, clamp(r, 0, chart.rows.length - 1), clamp(c, 0, chart.columns.length - 1));
  });
  for (const type of ["pointerleave", "blur"]) {
    plot.addEventListener(type, () => readHeatMap(chart, -1, -1));
  }
}

/** Mark the cell in row `r` and column `c` and show its weight; outside the map, clear both. */
function readHeatMap(chart, r, c) {
  const isInside = r in chart.rows && c in chart.columns;
  for (const label of chart.plot.querySelectorAll("text.on")) label.classList.remove("on");
  chart.cell.setAttribute("visibility", isInside ? "visible" : "hidden");
  if (!isInside) return hideTip();
  const [x, y] = [chart.edge + c * chart.size, chart.edge + r * chart.size];
  chart.at = [r, c];
  chart.names.rows[r].classList.add("on");
  chart.names.columns[c].classList.add("on");
  chart.cell.setAttribute("x", x);
  chart.cell.setAttribute("y", y);
  const weight = number(chart.weights[r * chart.columns.length + c], 3);
  const place = placeIn(chart.plot, x + chart.size, y + chart.size);
  return showTip(`${chart.rows[r]} → ${chart.columns[c]}`, [["", "weight", weight]], place);
}
