// Training curves of all runs, with one chart per metric. All charts zoom together, and values are
// read with the pointer or the keyboard. Charts are drawn in the pixels of their container, and
// again when its size changes, so that labels stay legible at every width.

const PLOT = { height: 210, left: 54, right: 12, top: 10, bottom: 26 };
const NO_TRAINING = "No training metrics. A run writes them to `metrics.jsonl` every " +
  "`train.log_every` updates.";
const NO_VALIDATION = "No validation yet. A run validates every `train.valid_every` updates " +
  "if `data.valid` is set.";
// Each chart: its title, the [kind, metric] of its lines, and the text to show if it has no data.
const CURVES = [
  { title: "Loss", lines: [["train", "loss"], ["valid", "loss"]],
    format: (v) => number(v, 3), placeholder: NO_TRAINING },
  { title: "Validation BLEU", lines: [["valid", "bleu"]],
    format: (v) => number(v, 2), placeholder: NO_VALIDATION },
  { title: "Validation chrF", lines: [["valid", "chrf"]],
    format: (v) => number(v, 2), placeholder: NO_VALIDATION },
  { title: "Learning rate", lines: [["train", "lr"]], format: precise, placeholder: NO_TRAINING },
  { title: "Target tokens per second", lines: [["train", "tokens_per_second"]],
    format: (v) => number(v, 0), placeholder: NO_TRAINING },
];

function showCurves() {
  if (!runs.length) return fill("curves", missing("No runs. Make the report from a run folder to " +
    "see its training curves."));
  const reset = h("button", { type: "button", hidden: true, onclick: () => zoomTo(null) },
    "Reset zoom");
  drawings.set(reset, () => (reset.hidden = !view.zoom));
  const figures = CURVES.map(curveFigure);
  const hasPlot = figures.some((figure) => figure.querySelector(".plot"));
  return fill("curves",
    hasPlot && h("div", { class: "controls legend" }, runs.map(runToggle), reset),
    hasPlot && h("p", { class: "note" }, "Thin lines: training loss. Thick lines: validation " +
      "loss. Ring: best checkpoint. Drag to zoom all charts, double-click to reset. On the " +
      "keyboard, arrows read values, + and − zoom, 0 resets."),
    h("div", { class: "charts" }, figures));
}

function runToggle(run) {
  const toggle = (event) => {
    const isHidden = !view.hidden.delete(run.name);
    if (isHidden) view.hidden.add(run.name);
    event.currentTarget.setAttribute("aria-pressed", !isHidden);
    redraw();
  };
  return h("button", { type: "button", "aria-pressed": "true", title: "Show or hide this run",
    onclick: toggle }, named(run.name));
}

function curveFigure({ title, lines, format, placeholder }) {
  const series = lines.flatMap(([kind, key]) => runs.map((run) => seriesOf(run, kind, key)))
    .filter((s) => s.points.length);
  if (!series.length) {
    return h("figure", {}, h("figcaption", {}, title), missing(placeholder));
  }
  const label = `${title} by update. Arrow keys read the values, plus and minus zoom, 0 resets.`;
  const plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": label });
  const chart = { plot, series, format, step: null };
  drawings.set(plot, () => drawCurves(chart));
  listenToCurves(chart);
  return h("figure", {}, h("figcaption", {}, title), plot);
}

function seriesOf(run, kind, key) {
  const { step = [], [key]: values = [] } = run.curves?.[kind] ?? {};
  const points = step.map((x, i) => [x, values[i]])
    .filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  const best = kind === "valid" ? run.best_step : null;
  return { name: run.name, kind, points, steps: points.map(([x]) => x), best };
}

function drawCurves(chart) {
  const width = chart.plot.clientWidth;
  const inner = [width - PLOT.left - PLOT.right, PLOT.height - PLOT.top - PLOT.bottom];
  const visible = chart.series.filter((s) => !view.hidden.has(s.name));
  const ends = visible.flatMap((s) => [s.steps[0], s.steps.at(-1)]);
  const domain = view.zoom ?? extent(ends);
  const isInside = ([x]) => x >= domain[0] && x <= domain[1];
  const inside = visible.flatMap((s) => s.points.filter(isInside));
  const x = scale(domain, [0, inner[0]]);
  const y = scale(padded(extent(inside.map((p) => p[1]))), [inner[1], 0]);
  const steps = unique(inside.map((p) => p[0])).sort((a, b) => a - b);
  const cursor = svg("g", {});
  Object.assign(chart, { visible, x, y, steps, inner, domain, cursor });
  const curves = visible.map((s) => curve(s, x, y, inner[0]));
  // The inner svg cuts off what lies outside the domain; 8 pixels leave room for a ring at the end.
  const clip = svg("svg", { width: inner[0] + 8, height: inner[1] }, curves);
  chart.plot.replaceChildren(picture(width, PLOT.height,
    svg("g", { transform: `translate(${PLOT.left},${PLOT.top})` },
      valueLines(y, 0, inner[0]), updateTicks(x, inner), clip, cursor)));
}

function updateTicks(x, [width, height]) {
  const count = Math.max(2, Math.floor(width / 80));
  const updates = ticks(x.domain, count).filter(Number.isInteger);
  return updates.map((v) => svg("text",
    { x: x(v), y: height + 17, "text-anchor": x(v) > width - 16 ? "end" : "middle" },
    compact(v)));
}

function curve({ name, kind, points, steps, best }, x, y, width) {
  const [first, last] = x.domain.map((step) => nearest(steps, step));
  const shown = points.slice(Math.max(0, first - 1), last + 2); // one more on either side
  const place = ([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`;
  const path = thinned(shown, width).map((p, i) => (i ? "L" : "M") + place(p)).join("");
  const dots = kind === "valid" && shown.length * 8 < width ? shown : [];
  const ringed = shown.find((p) => p[0] === best);
  return svg("g", { class: `c${slot(name)}` },
    svg("path", { class: `curve ${kind}`, d: path }),
    dots.map((p) => svg("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: 3 })),
    ringed && svg("circle", { class: "ring", cx: x(ringed[0]), cy: y(ringed[1]), r: 6.5 }));
}

/** Keep a few points per pixel: the lowest and highest of each stretch, so that spikes remain. */
function thinned(points, columns) {
  const size = Math.floor(points.length / columns);
  if (size < 4) return points;
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size).sort((a, b) => a[1] - b[1]);
    kept.push(...[part[0], part.at(-1)].sort((a, b) => a[0] - b[0]));
  }
  return kept;
}

function listenToCurves(chart) {
  const { plot } = chart;
  let from = null; // where a drag began
  const left = () => plot.getBoundingClientRect().left;
  const place = (event) => clamp(event.clientX - left() - PLOT.left, 0, chart.inner[0]);
  plot.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    from = place(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    readCurves(chart, chart.steps[nearest(chart.steps, chart.x.invert(place(event)))]);
    if (from !== null) chart.cursor.append(selection(chart, from, place(event)));
  });
  plot.addEventListener("pointerup", (event) => {
    const ends = [from, place(event)].sort((a, b) => a - b);
    const isDrag = from !== null && ends[1] - ends[0] > 6;
    from = null;
    if (isDrag) zoomTo(ends.map(chart.x.invert));
  });
  plot.addEventListener("pointercancel", () => (from = null));
  plot.addEventListener("dblclick", () => zoomTo(null));
  plot.addEventListener("keydown", (event) => onCurveKey(chart, event));
  for (const type of ["pointerleave", "blur"]) {
    plot.addEventListener(type, () => { chart.cursor.replaceChildren(); hideTip(); });
  }
}

function selection({ inner }, from, to) {
  return svg("rect", { class: "selection", x: Math.min(from, to), width: Math.abs(to - from),
    y: 0, height: inner[1] });
}

function onCurveKey(chart, event) {
  const { steps, domain } = chart;
  const at = steps.indexOf(chart.step);
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
  // Half of the new width of the charts, as a multiple of the current width.
  const factor = { "+": 0.25, "=": 0.25, "-": 1, "−": 1 }[event.key];
  if (event.key in moves) readCurves(chart, steps[clamp(moves[event.key], 0, steps.length - 1)]);
  else if (event.key === "0" || event.key === "Escape") zoomTo(null);
  else if (factor) zoomBy(chart, factor);
  else return;
  event.preventDefault();
}

function zoomBy({ step, domain: [low, high] }, factor) {
  const middle = step ?? (low + high) / 2;
  zoomTo([middle - factor * (high - low), middle + factor * (high - low)]);
}

/** Show the updates of this range in all charts; null shows all updates. */
function zoomTo(range) {
  const steps = runs.flatMap((run) => Object.values(run.curves ?? {}).map(({ step = [] }) => step));
  const [low, high] = extent(steps.flatMap((s) => [s[0], s.at(-1)]).filter(Number.isFinite));
  const wanted = range && [Math.max(range[0], low), Math.min(range[1], high)];
  const width = wanted && wanted[1] - wanted[0];
  // A range of less than one update would show nothing new, so the zoom then stays as it is.
  if (!wanted) view.zoom = null;
  else if (width >= 1) view.zoom = width < high - low ? wanted : null;
  hideTip();
  redraw();
}

/** Show each line's value at an update, or at its nearest point, whose update is then shown too. */
function readCurves(chart, step) {
  if (step === undefined) return;
  chart.step = step;
  const shown = chart.visible.map((s) => ({ ...s, point: s.points[nearest(s.steps, step)] }));
  const isInside = ({ point: [at] }) => at >= chart.domain[0] && at <= chart.domain[1];
  const x = chart.x(step);
  chart.cursor.replaceChildren(
    svg("line", { class: "crosshair", x1: x, x2: x, y1: 0, y2: chart.inner[1] }),
    ...shown.filter(isInside).map(({ name, point: [at, value] }) =>
      svg("circle", { class: `dot c${slot(name)}`, cx: chart.x(at), cy: chart.y(value), r: 4 })));
  const hasKinds = new Set(chart.series.map((s) => s.kind)).size > 1;
  const note = ({ kind, point: [at] }) =>
    (hasKinds ? ` ${kind}` : "") + (at === step ? "" : ` at ${number(at, 0)}`);
  showTip(`Update ${number(step, 0)}`,
    shown.map((s) => [s.name, note(s), chart.format(s.point[1])]),
    placeIn(chart.plot, PLOT.left + x, PLOT.top + 20));
}
