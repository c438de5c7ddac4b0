// Training curves: runs over one another, zoomed together, read by pointer or keyboard. Drawn in the pixels of their container, and again
// when it changes, so that labels stay legible at every width.

const PLOT = { height: 210, left: 54, right: 12, top: 10, bottom: 26 };
const NO_TRAINING = "No numbers of training: a run writes them to `metrics.jsonl` every `train.log_every` updates.";
const NO_VALIDATION = "Not validated yet: a run validates every `train.valid_every` updates, where `data.valid` names text.";
const CURVES = [
  { title: "Loss", lines: [["train", "loss"], ["valid", "loss"]], format: (v) => number(v, 3), need: NO_TRAINING },
  { title: "BLEU in validation", lines: [["valid", "bleu"]], format: (v) => number(v, 2), need: NO_VALIDATION },
  { title: "chrF in validation", lines: [["valid", "chrf"]], format: (v) => number(v, 2), need: NO_VALIDATION },
  { title: "Learning rate", lines: [["train", "lr"]], format: precise, need: NO_TRAINING },
  { title: "Target tokens a second", lines: [["train", "tokens_per_second"]], format: (v) => number(v, 0), need: NO_TRAINING },
];

function showCurves() {
  if (!runs.length) return fill("curves", missing("No runs, so no curves: write the report of a run folder to see its training."));
  const reset = h("button", { type: "button", hidden: true, onclick: () => zoomTo(null) }, "Reset zoom");
  drawings.set(reset, () => (reset.hidden = !view.zoom));
  const figures = CURVES.map(curveFigure);
  const isDrawn = figures.some((figure) => figure.querySelector(".plot"));
  return fill("curves",
    isDrawn && h("div", { class: "controls legend" }, runs.map(runToggle), reset),
    isDrawn && h("p", { class: "note" }, "Loss: thin in training, thick in validation; a ring is the best checkpoint. Drag to zoom all " +
      "charts, double-click to reset; on the keyboard, arrows read values, + and − zoom, 0 resets."),
    h("div", { class: "charts" }, figures));
}

function runToggle(run) {
  const toggle = (event) => {
    const isHidden = !view.hidden.delete(run.name);
    if (isHidden) view.hidden.add(run.name);
    event.currentTarget.setAttribute("aria-pressed", !isHidden);
    redraw();
  };
  return h("button", { type: "button", "aria-pressed": "true", title: "Show or hide this run", onclick: toggle }, named(run.name));
}

function curveFigure({ title, lines, format, need }) {
  const series = lines.flatMap(([kind, key]) => runs.map((run) => seriesOf(run, kind, key))).filter((s) => s.points.length);
  if (!series.length) return h("figure", {}, h("figcaption", {}, title), missing(need));
  const label = `${title} by update. Arrow keys read values, plus and minus zoom, 0 resets.`;
  const plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": label });
  const chart = { plot, series, format, step: null };
  drawings.set(plot, () => drawCurves(chart));
  listenToCurves(chart);
  return h("figure", {}, h("figcaption", {}, title), plot);
}

function seriesOf(run, kind, key) {
  const { step = [], [key]: values = [] } = run.curves?.[kind] ?? {};
  const points = step.map((x, i) => [x, values[i]]).filter(([x, y]) => Number.isFinite(x) && Number.isFinite(y));
  return { name: run.name, kind, points, steps: points.map(([x]) => x), best: kind === "valid" ? run.best_step : null };
}

function drawCurves(chart) {
  const width = chart.plot.clientWidth;
  const inner = [width - PLOT.left - PLOT.right, PLOT.height - PLOT.top - PLOT.bottom];
  const visible = chart.series.filter((s) => !view.hidden.has(s.name));
  const domain = view.zoom ?? extent(visible.flatMap((s) => [s.steps[0], s.steps.at(-1)]));
  const inside = visible.map((s) => s.points.filter(([x]) => x >= domain[0] && x <= domain[1])).flat();
  const x = scale(domain, [0, inner[0]]);
  const y = scale(padded(extent(inside.map((p) => p[1]))), [inner[1], 0]);
  const steps = unique(inside.map((p) => p[0])).sort((a, b) => a - b);
  const cursor = svg("g", {});
  Object.assign(chart, { visible, x, y, steps, inner, domain, cursor });
  const curves = visible.map((s) => curve(s, x, y, inner[0]));
  const clip = svg("svg", { width: inner[0] + 8, height: inner[1] }, curves); // an inner svg clips; a ring at the end has room
  chart.plot.replaceChildren(picture(width, PLOT.height,
    svg("g", { transform: `translate(${PLOT.left},${PLOT.top})` }, valueLines(y, 0, inner[0]), updateTicks(x, inner), clip, cursor)));
}

function updateTicks(x, [width, height]) {
  const whole = ticks(x.domain, Math.max(2, Math.floor(width / 80))).filter(Number.isInteger);
  return whole.map((v) => svg("text",
    { x: x(v), y: height + 17, "text-anchor": x(v) > width - 16 ? "end" : "middle" }, compact(v)));
}

function curve({ name, kind, points, steps, best }, x, y, width) {
  const near = points.slice(Math.max(0, nearest(steps, x.domain[0]) - 1), nearest(steps, x.domain[1]) + 2);
  const path = thinned(near, width).map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join("");
  const dots = kind === "valid" && near.length * 8 < width ? near : [];
  const chosen = near.find((p) => p[0] === best);
  return svg("g", { class: `c${slot(name)}` },
    svg("path", { class: `curve ${kind}`, d: path }),
    dots.map((p) => svg("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: 3 })),
    chosen && svg("circle", { class: "ring", cx: x(chosen[0]), cy: y(chosen[1]), r: 6.5 }));
}

/** A few points to a pixel at most: the lowest and the highest of each stretch, so that a spike stays. */
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
  const place = (event) => clamp(event.clientX - plot.getBoundingClientRect().left - PLOT.left, 0, chart.inner[0]);
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
  for (const away of ["pointerleave", "blur"]) plot.addEventListener(away, () => { chart.cursor.replaceChildren(); hideTip(); });
}

function selection({ inner }, from, to) {
  return svg("rect", { class: "selection", x: Math.min(from, to), width: Math.abs(to - from), y: 0, height: inner[1] });
}

function onCurveKey(chart, event) {
  const { steps, domain } = chart;
  const at = steps.indexOf(chart.step);
  const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: steps.length - 1 };
  const factor = { "+": 0.25, "=": 0.25, "-": 1, "−": 1 }[event.key]; // half of the new width, in widths of now
  if (event.key in moves) readCurves(chart, steps[clamp(moves[event.key], 0, steps.length - 1)]);
  else if (event.key === "0" || event.key === "Escape") zoomTo(null);
  else if (factor) zoomTo([-factor, factor].map((k) => (chart.step ?? (domain[0] + domain[1]) / 2) + k * (domain[1] - domain[0])));
  else return;
  event.preventDefault();
}

function zoomTo(range) {
  const ends = runs.flatMap((run) => Object.values(run.curves ?? {}).flatMap(({ step = [] }) => [step[0], step.at(-1)]));
  const whole = extent(ends.filter(Number.isFinite));
  const wanted = range && [Math.max(range[0], whole[0]), Math.min(range[1], whole[1])];
  const isPart = wanted && wanted[1] - wanted[0] >= 1 && wanted[1] - wanted[0] < whole[1] - whole[0];
  if (isPart || !wanted || wanted[1] - wanted[0] >= 1) view.zoom = isPart ? wanted : null; // closer than one update shows nothing new
  hideTip();
  redraw();
}

/** The values at an update: each line's own nearest point, named where that is another update. */
function readCurves(chart, step) {
  if (step === undefined) return;
  chart.step = step;
  const found = chart.visible.map((s) => ({ ...s, point: s.points[nearest(s.steps, step)] }));
  const isSeen = ({ point: [at] }) => at >= chart.domain[0] && at <= chart.domain[1];
  chart.cursor.replaceChildren(
    svg("line", { class: "crosshair", x1: chart.x(step), x2: chart.x(step), y1: 0, y2: chart.inner[1] }),
    ...found.filter(isSeen).map(({ name, point }) =>
      svg("circle", { class: `dot c${slot(name)}`, cx: chart.x(point[0]), cy: chart.y(point[1]), r: 4 })));
  const hasKinds = new Set(chart.series.map((s) => s.kind)).size > 1;
  const what = ({ kind, point: [at] }) => (hasKinds ? ` ${kind}` : "") + (at === step ? "" : ` at ${number(at, 0)}`);
  showTip(`Update ${number(step, 0)}`, found.map((s) => [s.name, what(s), chart.format(s.point[1])]),
    placeIn(chart.plot, PLOT.left + chart.x(step), PLOT.top + 20));
}
