// The sentence browser, and the diagnosis counts that lead to it. Sentences come in pages, and only
// those of one page are compared word by word, so that 10,000 sentences cost no more than 20.

const PAGE = 20;

function showDiagnosis(test) {
  const systems = test?.systems ?? [];
  const items = systems.flatMap((system) => system.diagnosis ?? []);
  const labels = unique(items.map((item) => item.label));
  if (!labels.length) {
    return fill("diagnosis", missing(test ? "This test set has no diagnosis." : NO_TEST));
  }
  const cell = (label) => (system, s) => {
    const item = (system.diagnosis ?? []).find((candidate) => candidate.label === label);
    return num(item ? flagButton(test, item, s) : "–");
  };
  return fill("diagnosis", table("Suspicious translations; click a number to see its sentences",
    ["", ...systems.map((system) => num(named(system.name)))],
    labels.map((label) => [label, ...systems.map(cell(label))])));
}

function flagButton(test, { label, count, flag }, s) {
  const isListed = (test.sentences?.flags?.[s] ?? []).some((flags) => flags.includes(flag));
  if (!isListed) return number(count, 0);
  const show = () => {
    Object.assign(view, { flag: `${s} ${flag}`, page: 0, query: "" });
    showSentences(test);
    jump("sentences");
  };
  const description = `${label}, ${test.systems[s].name}: show ${counted(count, "sentence")}`;
  return h("button", { type: "button", class: "link", "aria-label": description, onclick: show },
    number(count, 0));
}

function showSentences(test) {
  if (!test?.sentences?.src?.length) {
    return fill("sentences", missing(test ? "The scores came without sentences." : NO_TEST));
  }
  const names = (test.systems ?? []).map((system) => system.name);
  const corpus = { test, names, ref: [], hyps: [], scores: [], flags: [], ...test.sentences };
  const [sorts, filters] = [sortings(corpus), filterings(corpus)];
  const change = (choice) => { Object.assign(view, { page: 0 }, choice); update(); };
  const search = h("input", { type: "search", value: view.query, spellcheck: "false",
    placeholder: "a word, or part of one",
    oninput: () => change({ query: search.value }) });
  const sort = h("select", { onchange: () => change({ sort: Number(sort.value) }) });
  setOptions(sort, sorts.map((s) => s.label), view.sort);
  const flag = h("select", { onchange: () => change({ flag: flag.value }) });
  setOptions(flag, filters.map((f) => f.label), view.flag, filters.map((f) => f.value));
  const count = h("p", { role: "status", class: "note" });
  const cards = h("div", {});
  const pages = h("nav", { class: "pager", "aria-label": "Pages of sentences" });
  const turn = (page) => { view.page = page; update(); jump("sentences"); };
  const update = () => {
    const filter = filters.find((f) => f.value === view.flag) ?? filters[0];
    const found = findSentences(corpus, sorts[view.sort], filter);
    const shown = found.slice(view.page * PAGE, (view.page + 1) * PAGE);
    count.textContent = `${number(found.length, 0)} of ${counted(corpus.src.length, "sentence")}`;
    cards.replaceChildren(...shown.map((n) => sentenceCard(corpus, n)));
    if (!shown.length) {
      cards.append(missing("No sentence matches. Shorten the search, or show all sentences."));
    }
    pages.replaceChildren(...pager(Math.ceil(found.length / PAGE), turn));
    markHits(cards, folded(view.query));
  };
  const field = (label, control, kind = "") => h("label", { class: kind }, label, control);
  fill("sentences",
    h("div", { class: "controls" },
      field("Search source, reference and translations", search, "grow"),
      field("Order", sort), field("Show", flag)),
    corpus.ref.length > 0 && keyOfMarks(), count, cards, pages);
  return update();
}

/** An explanation of the marks and scores. */
function keyOfMarks() {
  return h("p", { class: "note" },
    h("span", { class: "differ" }, "Bold and underlined"), ": not in the reference. ",
    h("span", { class: "lost" }, "Dotted"), ": in the reference, but not in every translation. ",
    "Scores are sentence chrF.");
}

/** The orders to choose from, each with the key to sort by, lowest first. */
function sortings({ src, names, scores }) {
  const score = (s, n) => scores[s]?.[n] ?? NaN;
  const scored = [...names.keys()].filter((s) => scores[s]?.length);
  const pairs = scored.flatMap((a) => scored.filter((b) => b > a).map((b) => [a, b]));
  return [
    { label: "As in the test set" },
    { label: "Shortest source first", key: (n) => src[n].length },
    { label: "Longest source first", key: (n) => -src[n].length },
    ...scored.flatMap((s) => [
      { label: `Lowest chrF of ${names[s]}`, key: (n) => score(s, n) },
      { label: `Highest chrF of ${names[s]}`, key: (n) => -score(s, n) }]),
    ...pairs.flatMap(([a, b]) => [
      { label: `Largest gain, ${names[a]} to ${names[b]}`,
        key: (n) => score(a, n) - score(b, n) },
      { label: `Largest loss, ${names[a]} to ${names[b]}`,
        key: (n) => score(b, n) - score(a, n) }]),
  ];
}

/** The filters to choose from, one per flag and system. */
function filterings({ test, names, flags }) {
  const filters = [{ value: "", label: "All sentences", keeps: () => true }];
  for (const [s, name] of names.entries()) {
    for (const flag of unique((flags[s] ?? []).flat())) {
      filters.push({ value: `${s} ${flag}`, label: `${flagLabel(test, flag)}: ${name}`,
        keeps: (n) => flags[s][n]?.includes(flag) });
    }
  }
  return filters;
}

function flagLabel(test, flag) {
  const items = (test.systems ?? []).flatMap((system) => system.diagnosis ?? []);
  return items.find((item) => item.flag === flag)?.label ?? flag;
}

/** The indices of the sentences that match search and filter, in the chosen order. */
function findSentences(corpus, { key }, { keeps }) {
  const query = folded(view.query);
  const matches = (n) => !query || searchedText(corpus)[n].includes(query);
  const found = [...corpus.src.keys()].filter((n) => keeps(n) && matches(n));
  if (!key) return found;
  const keys = Float64Array.from(corpus.src, (_, n) => key(n));
  // Sentences without a score come last.
  const rank = (n) => (Number.isNaN(keys[n]) ? Infinity : keys[n]);
  return found.sort((a, b) => rank(a) - rank(b) || a - b);
}

/** The searchable text of each sentence, prepared by the first search. */
function searchedText(corpus) {
  const all = (n) =>
    [corpus.src[n], corpus.ref[n], ...corpus.hyps.map((hyp) => hyp[n])].join("\n");
  return (corpus.searched ??= corpus.src.map((_, n) => folded(all(n))));
}

function sentenceCard(corpus, n) {
  const { src, ref, hyps, scores, flags, names, test } = corpus;
  const reference = ref[n] === undefined ? null : segments(ref[n]);
  const words = hyps.map((hyp) => segments(hyp[n] ?? ""));
  const compared = words.map((hyp) => reference && compareWords(reference, hyp));
  const badges = (s) => (flags[s]?.[n] ?? []).map((flag) =>
    h("span", { class: "flag" }, flagLabel(test, flag)));
  return h("article", { class: "sentence" },
    h("h3", {}, `Sentence ${number(n + 1, 0)}`, attentionButton(test, n)),
    row("Source", [src[n]]),
    reference && row("Reference", markedReference(reference, compared, names)),
    words.map((hyp, s) =>
      row(named(names[s]), marked(hyp, compared[s]?.hyp), scoreNote(scores, s, n), badges(s))));
}

function attentionButton(test, n) {
  const entry = (test.attention ?? []).findIndex((map) => map.sentence === n);
  const show = () => { view.entry = entry; showAttention(test); jump("attention"); };
  return entry >= 0
    && h("button", { type: "button", class: "link", onclick: show }, "Attention");
}

function row(label, text, score = [], badges = []) {
  return h("div", { class: "row" }, h("span", { class: "label" }, label),
    h("div", { class: "content" }, h("div", { class: "text", dir: "auto" }, text), badges),
    h("span", { class: "score" }, score));
}

/** The score of a system, after the difference to the first system. */
function scoreNote(scores, s, n) {
  const value = scores[s]?.[n];
  const change = s > 0 ? value - scores[0]?.[n] : NaN;
  const isChange = Math.abs(change) >= 0.05;
  const [kind, arrow] = change > 0 ? ["up", "▲"] : ["down", "▼"];
  return [isChange && h("span", { class: kind }, `${arrow} ${number(Math.abs(change), 1)} `),
    number(value, 1)];
}

/** The text of a translation, with the words that are not in the reference marked. */
function marked(tokens, isKept) {
  const kindOf = (i) => (isKept && !isKept[i] ? "differ" : "");
  return stretches(tokens, kindOf).map(([kind, text]) =>
    (kind ? h("span", { class: kind }, text) : text));
}

/** The text of the reference, with the words that a translation lacks marked. */
function markedReference(tokens, compared, names) {
  const losers = (i) =>
    names.filter((_, s) => compared[s] && !compared[s].ref[i]).join(", ");
  return stretches(tokens, losers).map(([systems, text]) =>
    (systems ? h("span", { class: "lost", title: `not in ${systems}` }, text) : text));
}

/**
 * Join neighbouring tokens of the same kind to pairs [kind, text].
 *
 * A space takes the kind of its neighbours if both have the same.
 */
function stretches(tokens, kindOf) {
  const kinds = tokens.map((token, i) => (isSpace(token) ? null : kindOf(i)));
  const joined = [];
  for (const [i, token] of tokens.entries()) {
    const kind = kinds[i] ?? (kinds[i - 1] === kinds[i + 1] ? kinds[i - 1] : null) ?? "";
    if (joined.at(-1)?.[0] === kind) joined.at(-1)[1] += token;
    else joined.push([kind, token]);
  }
  return joined;
}

/** Split text into words, punctuation and spaces by the rules of Unicode, also Chinese and Thai. */
function segments(text) {
  segments.segmenter ??= new Intl.Segmenter(undefined, { granularity: "word" });
  return Array.from(segments.segmenter.segment(text), (part) => part.segment);
}

function isSpace(token) {
  return /^\s*$/.test(token);
}

/**
 * Find the tokens of both sides that belong to a longest common subsequence.
 *
 * Returns {ref, hyp}, each with a boolean per token, or null if the texts are too long.
 */
function compareWords(ref, hyp) {
  const [refAt, hypAt] = [ref, hyp].map((tokens) =>
    [...tokens.keys()].filter((i) => !isSpace(tokens[i])));
  const [rows, columns] = [refAt.length, hypAt.length];
  if (rows * columns > 2_000_000) return null;
  // length[i][j] is the length of the subsequence for the words of ref from i and of hyp from j.
  const length = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  const isSame = (i, j) => ref[refAt[i]] === hyp[hypAt[j]];
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      length[i][j] = isSame(i, j) ? length[i + 1][j + 1] + 1
        : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const kept = { ref: ref.map(isSpace), hyp: hyp.map(isSpace) };
  for (let i = 0, j = 0; i < rows && j < columns;) {
    if (isSame(i, j)) kept.ref[refAt[i++]] = kept.hyp[hypAt[j++]] = true;
    else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return kept;
}

/** Highlight what was searched for, on top of the other marks and without changing any element. */
function markHits(root, query) {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.delete("hit");
  const texts = query ? [...root.querySelectorAll(".text")] : [];
  const ranges = texts.flatMap((text) => hitsIn(text, query));
  if (ranges.length) CSS.highlights.set("hit", new Highlight(...ranges));
}

function hitsIn(element, query) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const ends = []; // [text node, the position in the whole text at which it ends]
  let length = 0;
  while (walker.nextNode()) {
    length += walker.currentNode.length;
    ends.push([walker.currentNode, length]);
  }
  const text = folded(element.textContent);
  // If lower case changes the length, as for a Turkish capital I, the positions would be wrong.
  if (text.length !== element.textContent.length) return [];
  const place = (at) => {
    const [node, end] = ends.find((entry) => at <= entry[1]);
    return [node, node.length - (end - at)];
  };
  const ranges = [];
  for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, at + query.length)) {
    const range = new Range();
    range.setStart(...place(at));
    range.setEnd(...place(at + query.length));
    ranges.push(range);
  }
  return ranges;
}

/** The buttons that turn pages, and a field for the page number. */
function pager(pages, turn) {
  if (pages < 2) return [];
  const button = (label, text, page) => h("button", { type: "button", "aria-label": label,
    onclick: () => turn(page), disabled: page < 0 || page >= pages || page === view.page }, text);
  const input = h("input", { type: "number", min: 1, max: pages, value: view.page + 1,
    "aria-label": "Page",
    onchange: () => turn(clamp(Math.round(Number(input.value)) - 1 || 0, 0, pages - 1)) });
  return [button("First page", "«", 0), button("Previous page", "‹", view.page - 1),
    input, `of ${number(pages, 0)}`,
    button("Next page", "›", view.page + 1), button("Last page", "»", pages - 1)];
}
