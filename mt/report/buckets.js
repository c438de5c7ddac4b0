// Bar charts of scores on sentences of similar length or rarity, with a bar per system. Below each
// group of bars is its number of sentences.

const BARS = { height: 230, left: 44, right: 8, top: 18, bottom: 42 };

function showBuckets(test) {
  const buckets = (test?.buckets ?? []).filter((bucket) => bucket.labels?.length);
  if (!test) return fill("buckets", missing(NO_TEST));
  if (!buckets.length) {
    return fill("buckets", missing("This test set has no scores by sentence length or rarity."));
  }
  const names = (test.systems ?? []).map((system) => system.name);
  return fill("buckets",
    h("p", { class: "legend" }, names.map(named)),
    h("div", { class: "charts" }, buckets.map((bucket) => bucketFigure(bucket, names))));
}

function bucketFigure(bucket, names) {
  const label = `${bucket.metric} by ${bucket.title}. Arrow keys read the values.`;
  const plot = h("div", { class: "plot", tabindex: "0", role: "group", "aria-label": label });
  const chart = { plot, bucket, names, at: -1 };
  drawings.set(plot, () => drawBars(chart));
  listenToBars(chart);
  const cells = (i) => names.map((_, s) => num(number(bucket.values?.[s]?.[i], 2)));
  const rows = bucket.labels.map((name, i) =>
    [name, num(number(bucket.counts?.[i], 0)), ...cells(i)]);
  const caption = h("figcaption", {}, bucket.title, h("span", { class: "note" }, bucket.metric));
  return h("figure", {}, caption, plot,
    h("details", {}, h("summary", {}, "As a table"),
      table(`${bucket.metric} by ${bucket.title}`, ["", num("Sentences"), ...names.map(num)],
        rows)));
}

function listenToBars(chart) {
  const { plot, bucket } = chart;
  const left = () => plot.getBoundingClientRect().left;
  const at = (event) => Math.floor(chart.x.invert(event.clientX - left()));
  plot.addEventListener("pointermove", (event) => readBars(chart, at(event)));
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    readBars(chart, clamp(chart.at + move, 0, bucket.labels.length - 1));
  });
  for (const type of ["pointerleave", "blur"]) {
    plot.addEventListener(type, () => { chart.band.replaceChildren(); hideTip(); });
  }
}

function drawBars(chart) {
  const { plot, bucket, names } = chart;
  const width = plot.clientWidth;
  const top = Math.max(1e-9, ...(bucket.values ?? []).flat().filter(Number.isFinite));
  chart.x = scale([0, bucket.labels.length], [BARS.left, width - BARS.right]);
  // The axis begins at 0, so that the lengths of the bars are proportional to the scores.
  chart.y = scale([0, top * 1.04], [BARS.height - BARS.bottom, BARS.top]);
  chart.step = chart.x(1) - chart.x(0);
  chart.bar = Math.min(34, (chart.step * 0.8) / Math.max(1, names.length));
  chart.band = svg("g", {});
  plot.replaceChildren(picture(width, BARS.height,
    valueLines(chart.y, BARS.left, width - BARS.right), chart.band,
    names.map((name, s) => svg("g", { class: `c${slot(name)}` },
      bucket.labels.map((_, i) => barOf(chart, s, i)))),
    bucket.labels.map((_, i) => bucketLabel(chart, i))));
}

function barOf({ bucket, names, x, y, bar }, s, i) {
  const value = bucket.values?.[s]?.[i];
  if (!Number.isFinite(value)) return null;
  const left = x(i + 0.5) + (s - names.length / 2) * bar;
  return [
    svg("rect", { class: "bar", x: left + 0.5, width: Math.max(1, bar - 1),
      y: y(value), height: Math.max(0, y(0) - y(value)) }),
    bar >= 27 && svg("text", { class: "bar-value", x: left + bar / 2, y: y(value) - 4 },
      number(value, 1))];
}

function bucketLabel({ bucket, x, step }, i) {
  const text = (up, content) =>
    svg("text", { x: x(i + 0.5), y: BARS.height - up, "text-anchor": "middle" }, content);
  return [text(24, shortened(bucket.labels[i], step / 6.5)),
    step > 30 && text(8, `n ${compact(bucket.counts?.[i] ?? 0)}`)];
}

function readBars(chart, at) {
  const { bucket, names, plot, x, step } = chart;
  if (!(at in bucket.labels)) return;
  chart.at = at;
  const height = BARS.height - BARS.top - BARS.bottom;
  const band = { class: "band", x: x(at), width: step, y: BARS.top, height };
  chart.band.replaceChildren(svg("rect", band));
  const values = names.map((name, s) =>
    [name, ` ${bucket.metric}`, number(bucket.values?.[s]?.[at], 2)]);
  const title = `${bucket.title}: ${bucket.labels[at]}`;
  showTip(title, [...values, ["", "sentences", number(bucket.counts?.[at], 0)]],
    placeIn(plot, x(at + 0.5), BARS.top + 12));
}
