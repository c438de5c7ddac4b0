// Builds the report from the JSON beside it: the frame, the tables, and the order of all parts. The last of the scripts, which begins.

const NO_TEST = "No test set was scored. Name one under `data.test` of the configuration, then write the report again.";
const NO_COMPARISON = "Nothing was compared: write the report of two systems or more to learn whether one is better.";
const NO_DIFFERENCE = "Nothing to compare: write the report of two runs or more to see what sets them apart.";
const LOWER_IS_BETTER = new Set(["TER", "LOSS"]);

const data = JSON.parse(byId("data").textContent);
const runs = data.runs ?? [];
const tests = data.tests ?? [];
const slots = colourSlots();
const view = { // what a person chose
  test: 0, zoom: null, hidden: new Set(), query: "", sort: 0, flag: "", page: 0, entry: 0, kind: "cross", layer: null, head: MEAN,
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
  const written = ["Written", data.generated, data.version && `by mt ${data.version}`].filter(Boolean);
  byId("footer").append(written.length > 1 ? `${written.join(" ")}. ` : "", "This file loads nothing and sends nothing.");
  startNavigation();
  startResizing();
}

/** Everything that belongs to one test set. */
function showTest() {
  Object.assign(view, { query: "", sort: 0, flag: "", page: 0, entry: 0 });
  for (const show of [showScores, showComparisons, showBuckets, showDiagnosis, showSentences, showAttention]) show(tests[view.test]);
  redraw();
}

function startTheme() {
  const [button, root, system] = [byId("theme"), document.documentElement, matchMedia("(prefers-color-scheme: dark)")];
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

/** A browser may refuse storage to a file, which costs no more than the memory of the theme. */
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

/** The part in view is marked in the bar. */
function startNavigation() {
  const links = new Map([...document.querySelectorAll("header nav a")].map((link) => [link.hash.slice(1), link]));
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
    if (main.clientWidth === width) return; // its height changes with every search
    width = main.clientWidth;
    requestAnimationFrame(redraw);
  }).observe(main);
}

function jump(id) {
  byId(id).scrollIntoView();
  byId(`h-${id}`).focus({ preventScroll: true });
}

function showSummary() {
  const facts = [counted(runs.length, "run"), counted(tests.length, "test set"), data.generated].filter(Boolean);
  fill("summary",
    h("p", { class: "muted" }, facts.join(" · ")),
    tests.length ? h("div", { class: "cards" }, tests.map(testCard)) : missing(NO_TEST),
    runs.length ? runTable() : missing("No runs: scores of text files have no training behind them that could be shown."));
}

function sized(test) {
  return [counted(test.num_sentences, "sentence"), test.precision && `models in ${test.precision}`].filter(Boolean).join(", ");
}

function testCard(test) {
  const systems = test.systems ?? [];
  const metric = systems[0]?.scores?.[0]?.name;
  const best = metric && systems[bestOf(systems, metric)];
  const verdicts = (test.comparisons ?? []).map((comparison) => comparison.verdict).filter(Boolean);
  const rank = `the ${isLower(metric) ? "lowest" : "highest"} ${metric} of ${systems.length} systems`;
  return h("article", { class: "card" },
    h("h3", {}, test.name), h("p", { class: "note" }, sized(test)),
    best ? h("p", { class: "lead" }, named(best.name), ` ${metric} ${number(scoreOf(best, metric).value, 2)}`) : missing("No scores."),
    best && systems.length > 1 && h("p", { class: "note" }, rank),
    verdicts.length > 0 && h("ul", {}, verdicts.map((verdict) => h("li", {}, verdict))));
}

function runTable() {
  const cells = (run) => {
    const valid = run.curves?.valid ?? {};
    const at = (valid.step ?? []).indexOf(run.best_step);
    const best = (key, digits) => num(number(valid[key]?.[at], digits));
    return [named(run.name), run.state ?? "–", num(number(run.best_step, 0)), best("loss", 3), best("bleu", 2), best("chrf", 2),
      h("td", { class: "mono" }, run.path ?? "–")];
  };
  return table("The runs, and the validation of each one's best checkpoint",
    ["Run", "State", num("Best update"), num("Loss"), num("BLEU"), num("chrF"), "Folder"], runs.map(cells));
}

function showScores(test) {
  const systems = test?.systems ?? [];
  if (!systems.length) return fill("scores", missing(NO_TEST));
  const metrics = unique(systems.flatMap((system) => (system.scores ?? []).map((score) => score.name)));
  const cells = (system, i) => metrics.map((metric) => {
    const isBest = systems.length > 1 && bestOf(systems, metric) === i;
    return scoreCell(scoreOf(system, metric), intervalRange(systems, metric), `c${slot(system.name)}${isBest ? " best" : ""}`);
  });
  const rows = systems.map((system, i) => [named(system.name), ...cells(system, i), num(number(system.length_ratio, 3))]);
  const heads = metrics.map((metric) => h("span", {}, metric, isLower(metric) && h("span", { class: "note" }, ", lower is better")));
  return fill("scores",
    table([test.name, sized(test)].filter(Boolean).join(", ") + "; the best in bold, 95% intervals in brackets",
      ["System", ...heads, num("Length ratio")], rows),
    h("h3", {}, "Signatures"), signatures(systems, metrics));
}

function scoreCell(score, range, kind) {
  if (!Number.isFinite(score?.value)) return "–";
  const { value, interval } = score;
  return h("td", { class: kind }, number(value, 2),
    interval && h("span", { class: "note" }, ` [${number(interval[0], 2)}, ${number(interval[1], 2)}]`),
    interval && intervalBar(value, interval, scale(range, [4, 146])));
}

function intervalBar(value, [low, high], x) {
  return svg("svg", { class: "interval", viewBox: "0 0 150 12", "aria-hidden": "true" },
    svg("line", { class: "range", x1: 0, x2: 150, y1: 6, y2: 6 }),
    svg("line", { class: "between", x1: x(low), x2: x(high), y1: 6, y2: 6 }),
    svg("line", { class: "value", x1: x(value), x2: x(value), y1: 0, y2: 12 }));
}

/** One range for all systems, so that their intervals can be compared by eye. */
function intervalRange(systems, metric) {
  const scores = systems.map((system) => scoreOf(system, metric)).filter(Boolean);
  return extent(scores.flatMap(({ value, interval }) => [value, ...(interval ?? [])]));
}

/** A signature once for all systems that share it. */
function signatures(systems, metrics) {
  const of = (system, metric) => scoreOf(system, metric)?.signature;
  const items = metrics.flatMap((metric) => unique(systems.map((system) => of(system, metric)).filter(Boolean)).map((signature) => {
    const users = systems.filter((system) => of(system, metric) === signature).map((system) => system.name);
    const whose = users.length < systems.length ? ` (${users.join(", ")})` : "";
    return h("li", {}, h("strong", {}, metric + whose), h("code", {}, signature), copyButton(`Copy the signature of ${metric}`, signature));
  }));
  return items.length ? h("ul", { class: "signatures" }, items) : missing("These scores came without signatures.");
}

function copyButton(label, text) {
  const button = h("button", { type: "button", class: "link copy", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    const isDone = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    if (!isDone) getSelection().selectAllChildren(button.previousSibling); // refused: ready for the person's own Ctrl-C
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
    h("p", { class: "note" }, "p: how likely so large a difference would be were chance alone at work; it counts where every test is below 0.05."),
    ...comparisons.map((c) => comparison(c, h("span", {}, name(c.b), " against ", name(c.a)))));
}

function comparison(c, title) {
  const tests = unique((c.metrics ?? []).flatMap((row) => Object.keys(row.p_values ?? {})));
  const rows = (c.metrics ?? []).map((row) =>
    [row.metric, num(signed(row.difference, 2)), ...tests.map((test) => num(pValue(row.p_values?.[test])))]);
  return h("article", {}, h("h3", {}, title), h("p", {}, c.verdict ?? ""), outcomes(c),
    table("Difference, and p by each test", ["Metric", num("Difference"), ...tests.map((test) => num(test))], rows));
}

function outcomes({ wins = 0, ties = 0, losses = 0 }) {
  const total = wins + ties + losses;
  if (!total) return null;
  const part = (kind, count) => h("span", { class: kind, style: `width: ${(100 * count) / total}%` });
  const [better, alike, worse] = [wins, ties, losses].map((count) => number(count, 0));
  return h("p", {}, `${better} sentences better, ${alike} alike, ${worse} worse (chrF)`,
    h("span", { class: "outcomes", "aria-hidden": "true" }, part("win", wins), part("tie", ties), part("loss", losses)));
}

function showDifferences() {
  const differences = data.config_differences ?? [];
  if (runs.length < 2) return fill("differences", missing(NO_DIFFERENCE));
  if (!differences.length) return fill("differences", missing("The configurations of these runs are the same."));
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value ?? null) === "null" ? "–" : JSON.stringify(value));
  const cells = (values) => runs.map((_, i) => h("td", { class: "value mono" }, text(values?.[i])));
  return fill("differences", table("Keys whose values differ", ["Key", ...runs.map((run) => named(run.name))],
    differences.map(({ key, values }) => [h("code", {}, key), ...cells(values)])));
}

function showProvenance() {
  const labels = unique(runs.flatMap((run) => Object.keys(run.provenance ?? {})));
  if (!labels.length) return fill("provenance", missing("No provenance: it comes from the model folder of a run."));
  const cells = (label) => runs.map((run) => h("td", { class: "value" }, run.provenance?.[label] ?? "–"));
  return fill("provenance", table("Where the models come from", ["", ...runs.map((run) => named(run.name))],
    labels.map((label) => [label, ...cells(label)])));
}

/** A colour to each name, the same wherever the name comes up. */
function colourSlots() {
  const systems = tests.flatMap((test) => test.systems ?? []);
  return new Map(unique([...runs, ...systems].map(({ name }) => name)).map((name, i) => [name, i % 6]));
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

/** The number of the system with the best value, or -1. */
function bestOf(systems, metric) {
  const values = systems.map((system) => scoreOf(system, metric)?.value);
  const isBetter = (value, best) => (isLower(metric) ? value < best : value > best);
  return values.reduce((best, v, i) => (Number.isFinite(v) && (best < 0 || isBetter(v, values[best])) ? i : best), -1);
}
