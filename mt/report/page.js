// Builds the report from the JSON in the page: the header, the tables, and the order of all parts.
// This script comes last, and its call of `start` draws everything.

const NO_TEST = "No test set was scored. Set `data.test` in the configuration, or give `--src` " +
  "and `--ref`, and make the report again.";
const NO_COMPARISON = "Nothing to compare. Make the report from at least two systems to see " +
  "which one is better.";
const NO_DIFFERENCE = "Nothing to compare. Make the report from at least two runs to see how " +
  "their configurations differ.";
const LOWER_IS_BETTER = new Set(["TER", "LOSS"]);

const data = JSON.parse(byId("data").textContent);
const runs = data.runs ?? [];
const tests = data.tests ?? [];
const slots = colourSlots();
// What the reader has chosen.
const view = {
  test: 0, zoom: null, hidden: new Set(), query: "", sort: 0, flag: "", page: 0, entry: 0,
  kind: "cross", layer: null, head: MEAN,
};

start();

function start() {
  startTheme();
  startTests();
  showSummary();
  showCurves();
  showDifferences();
  showProvenance();
  showTest();
  const author = data.version && `by mt ${data.version}`;
  const origin = ["Generated", data.generated, author].filter(Boolean);
  byId("footer").append(origin.length > 1 ? `${origin.join(" ")}. ` : "",
    "This page loads nothing from the network and sends nothing.");
  startNavigation();
  startResizing();
}

/** Draw all parts that belong to the chosen test set. */
function showTest() {
  Object.assign(view, { query: "", sort: 0, flag: "", page: 0, entry: 0 });
  const parts = [showScores, showComparisons, showBuckets, showDiagnosis, showSentences,
    showAttention];
  for (const show of parts) show(tests[view.test]);
  redraw();
}

function startTheme() {
  const [button, root] = [byId("theme"), document.documentElement];
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => button.setAttribute("aria-pressed", isDark());
  if (stored("theme")) root.dataset.theme = stored("theme");
  system.addEventListener("change", show);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored("theme", root.dataset.theme);
    show();
  });
  show();
}

/**
 * Read a value from the browser's storage, after writing it if it is given.
 *
 * A browser may refuse storage to a local file. The theme is then not remembered.
 */
function stored(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(`mt-report-${key}`, value);
    return localStorage.getItem(`mt-report-${key}`);
  } catch {
    return null;
  }
}

function startTests() {
  if (tests.length < 2) return;
  setOptions(byId("test"), tests.map((test) => test.name), view.test);
  byId("test-choice").hidden = false;
  byId("test").addEventListener("change", (event) => {
    view.test = Number(event.target.value);
    showTest();
  });
}

/** Highlight the link to the part that is in view. */
function startNavigation() {
  const anchors = [...document.querySelectorAll("header nav a")];
  const links = new Map(anchors.map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) links.get(target.id).setAttribute("aria-current", "location");
      else links.get(target.id).removeAttribute("aria-current");
    }
  }, { rootMargin: "-25% 0px -70% 0px" });
  for (const id of links.keys()) watcher.observe(byId(id));
}

function startResizing() {
  const main = document.querySelector("main");
  let width = main.clientWidth;
  new ResizeObserver(() => {
    if (main.clientWidth === width) return; // only the height changed, as after every search
    width = main.clientWidth;
    requestAnimationFrame(redraw);
  }).observe(main);
}

function jump(id) {
  byId(id).scrollIntoView();
  byId(`h-${id}`).focus({ preventScroll: true });
}

function showSummary() {
  const facts = [counted(runs.length, "run"), counted(tests.length, "test set"), data.generated];
  fill("summary",
    h("p", { class: "muted" }, facts.filter(Boolean).join(" · ")),
    tests.length ? h("div", { class: "cards" }, tests.map(testCard)) : missing(NO_TEST),
    runs.length ? runTable() : missing("No runs: only text files were scored."));
}

/** The size of a test set, and the precision in which models translated it. */
function sized(test) {
  const precision = test.precision && `models in ${test.precision}`;
  return [counted(test.num_sentences, "sentence"), precision].filter(Boolean).join(", ");
}

function testCard(test) {
  const systems = test.systems ?? [];
  const metric = systems[0]?.scores?.[0]?.name;
  const best = metric && systems[bestOf(systems, metric)];
  const verdicts = (test.comparisons ?? []).map((c) => c.verdict).filter(Boolean);
  const order = isLower(metric) ? "lowest" : "highest";
  const rank = `the ${order} ${metric} of ${systems.length} systems`;
  return h("article", { class: "card" },
    h("h3", {}, test.name), h("p", { class: "note" }, sized(test)),
    best
      ? h("p", { class: "lead" }, named(best.name),
        ` ${metric} ${number(scoreOf(best, metric).value, 2)}`)
      : missing("No scores."),
    best && systems.length > 1 && h("p", { class: "note" }, rank),
    verdicts.length > 0 && h("ul", {}, verdicts.map((verdict) => h("li", {}, verdict))));
}

function runTable() {
  const cells = (run) => {
    const valid = run.curves?.valid ?? {};
    const at = (valid.step ?? []).indexOf(run.best_step);
    const best = (key, digits) => num(number(valid[key]?.[at], digits));
    return [named(run.name), run.state ?? "–", num(number(run.best_step, 0)),
      best("loss", 3), best("bleu", 2), best("chrf", 2),
      h("td", { class: "mono" }, run.path ?? "–")];
  };
  return table("The runs, with the validation scores of their best checkpoints",
    ["Run", "State", num("Best update"), num("Loss"), num("BLEU"), num("chrF"), "Folder"],
    runs.map(cells));
}

function showScores(test) {
  const systems = test?.systems ?? [];
  if (!systems.length) return fill("scores", missing(NO_TEST));
  const names = systems.flatMap((system) => (system.scores ?? []).map((score) => score.name));
  const metrics = unique(names);
  const cells = (system, i) => metrics.map((metric) => {
    const isBest = systems.length > 1 && bestOf(systems, metric) === i;
    const kind = `c${slot(system.name)}${isBest ? " best" : ""}`;
    return scoreCell(scoreOf(system, metric), intervalRange(systems, metric), kind);
  });
  const rows = systems.map((system, i) =>
    [named(system.name), ...cells(system, i), num(number(system.length_ratio, 3))]);
  const heads = metrics.map((metric) =>
    h("span", {}, metric, isLower(metric) && h("span", { class: "note" }, ", lower is better")));
  const caption = [test.name, sized(test)].filter(Boolean).join(", ")
    + "; the best score is bold, 95% intervals are in brackets";
  return fill("scores",
    table(caption, ["System", ...heads, num("Length ratio")], rows),
    h("h3", {}, "Signatures"), signatures(systems, metrics));
}

function scoreCell(score, range, kind) {
  if (!Number.isFinite(score?.value)) return "–";
  const { value, interval } = score;
  const ends = interval?.map((end) => number(end, 2));
  return h("td", { class: kind }, number(value, 2),
    interval && h("span", { class: "note" }, ` [${ends.join(", ")}]`),
    interval && intervalBar(value, interval, scale(range, [4, 146])));
}

function intervalBar(value, [low, high], x) {
  return svg("svg", { class: "interval", viewBox: "0 0 150 12", "aria-hidden": "true" },
    svg("line", { class: "range", x1: 0, x2: 150, y1: 6, y2: 6 }),
    svg("line", { class: "between", x1: x(low), x2: x(high), y1: 6, y2: 6 }),
    svg("line", { class: "value", x1: x(value), x2: x(value), y1: 0, y2: 12 }));
}

/** One range for all systems, so that their intervals can be compared at a glance. */
function intervalRange(systems, metric) {
  const scores = systems.map((system) => scoreOf(system, metric)).filter(Boolean);
  return extent(scores.flatMap(({ value, interval }) => [value, ...(interval ?? [])]));
}

/** A list of the signatures; systems with the same signature share an entry. */
function signatures(systems, metrics) {
  const items = metrics.flatMap((metric) => {
    const signatureOf = (system) => scoreOf(system, metric)?.signature;
    return unique(systems.map(signatureOf).filter(Boolean)).map((signature) => {
      const users = systems.filter((system) => signatureOf(system) === signature);
      const names = users.map((system) => system.name).join(", ");
      const label = users.length < systems.length ? `${metric} (${names})` : metric;
      return h("li", {}, h("strong", {}, label), h("code", {}, signature),
        copyButton(`Copy the signature of ${metric}`, signature));
    });
  });
  return items.length ? h("ul", { class: "signatures" }, items)
    : missing("These scores have no signatures.");
}

function copyButton(label, text) {
  const attributes = { type: "button", class: "link copy", "aria-label": label };
  const button = h("button", attributes, "Copy");
  button.addEventListener("click", async () => {
    const copied = navigator.clipboard?.writeText(text);
    const isDone = await copied?.then(() => true, () => false);
    // If the browser refuses, select the text, ready for Ctrl-C.
    if (!isDone) getSelection().selectAllChildren(button.previousSibling);
    button.textContent = isDone ? "Copied" : "Selected";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function showComparisons(test) {
  const comparisons = test?.comparisons ?? [];
  if (!test) return fill("comparisons", missing(NO_TEST));
  if (!comparisons.length) return fill("comparisons", missing(NO_COMPARISON));
  const name = (index) => named(test.systems?.[index]?.name ?? `system ${index}`);
  return fill("comparisons",
    h("p", { class: "note" }, "p: the probability of so large a difference if only chance were " +
      "at work. A difference counts if p is below 0.05 in every test."),
    ...comparisons.map((c) => comparison(c, h("span", {}, name(c.b), " against ", name(c.a)))));
}

function comparison(c, title) {
  const metrics = c.metrics ?? [];
  const tests = unique(metrics.flatMap((row) => Object.keys(row.p_values ?? {})));
  const rows = metrics.map((row) => [row.metric, num(signed(row.difference, 2)),
    ...tests.map((test) => num(pValue(row.p_values?.[test])))]);
  return h("article", {}, h("h3", {}, title), h("p", {}, c.verdict ?? ""), outcomes(c),
    table("Difference, and p by each test",
      ["Metric", num("Difference"), ...tests.map((test) => num(test))], rows));
}

function outcomes({ wins = 0, ties = 0, losses = 0 }) {
  const total = wins + ties + losses;
  if (!total) return null;
  const part = (kind, count) =>
    h("span", { class: kind, style: `width: ${(100 * count) / total}%` });
  const [better, equal, worse] = [wins, ties, losses].map((count) => number(count, 0));
  return h("p", {}, `${better} sentences better, ${equal} equal, ${worse} worse (by chrF)`,
    h("span", { class: "outcomes", "aria-hidden": "true" },
      part("win", wins), part("tie", ties), part("loss", losses)));
}

function showDifferences() {
  const differences = data.config_differences ?? [];
  if (runs.length < 2) return fill("differences", missing(NO_DIFFERENCE));
  if (!differences.length) {
    return fill("differences", missing("These runs have the same configuration."));
  }
  const text = (value) => {
    const json = JSON.stringify(value ?? null);
    return typeof value === "string" ? value : json === "null" ? "–" : json;
  };
  const cells = (values) =>
    runs.map((_, i) => h("td", { class: "value mono" }, text(values?.[i])));
  const rows = differences.map(({ key, values }) => [h("code", {}, key), ...cells(values)]);
  return fill("differences", table("Options whose values differ",
    ["Option", ...runs.map((run) => named(run.name))], rows));
}

function showProvenance() {
  const labels = unique(runs.flatMap((run) => Object.keys(run.provenance ?? {})));
  if (!labels.length) {
    return fill("provenance", missing("No provenance. The model folder of a run records it."));
  }
  const cells = (label) =>
    runs.map((run) => h("td", { class: "value" }, run.provenance?.[label] ?? "–"));
  return fill("provenance", table("Where the models come from",
    ["", ...runs.map((run) => named(run.name))],
    labels.map((label) => [label, ...cells(label)])));
}

/** Assign a colour to each name, which it keeps in all parts of the page. */
function colourSlots() {
  const systems = tests.flatMap((test) => test.systems ?? []);
  const names = unique([...runs, ...systems].map(({ name }) => name));
  return new Map(names.map((name, i) => [name, i % 6]));
}

function slot(name) {
  return slots.get(name) ?? 5;
}

function scoreOf(system, metric) {
  return (system.scores ?? []).find((score) => score.name === metric);
}

function isLower(metric) {
  return LOWER_IS_BETTER.has(String(metric).toUpperCase());
}

/** The index of the system with the best score, or -1 if there is none. */
function bestOf(systems, metric) {
  const values = systems.map((system) => scoreOf(system, metric)?.value);
  const isBetter = (value, best) => (isLower(metric) ? value < best : value > best);
  const isNewBest = (v, best) => Number.isFinite(v) && (best < 0 || isBetter(v, values[best]));
  return values.reduce((best, v, i) => (isNewBest(v, best) ? i : best), -1);
}
