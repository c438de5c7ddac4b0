// The sentence browser, and the counts that lead into it. Sentences come in pages: only those of one page are compared word by word, so ten
// thousand cost what twenty do.

const PAGE = 20;

function showDiagnosis(test) {
  const systems = test?.systems ?? [];
  const labels = unique(systems.flatMap((system) => (system.diagnosis ?? []).map((item) => item.label)));
  if (!labels.length) return fill("diagnosis", missing(test ? "No diagnosis: nothing was counted for this test set." : NO_TEST));
  const cell = (label) => (system, s) => {
    const item = (system.diagnosis ?? []).find((one) => one.label === label);
    return num(item ? flagButton(test, item, s) : "–");
  };
  return fill("diagnosis", table("Sentences in which something looks wrong; a number shows its sentences below",
    ["", ...systems.map((system) => num(named(system.name)))], labels.map((label) => [label, ...systems.map(cell(label))])));
}

function flagButton(test, { label, count, flag }, s) {
  const isListed = (test.sentences?.flags?.[s] ?? []).some((flags) => flags.includes(flag));
  if (!isListed) return number(count, 0);
  const show = () => {
    Object.assign(view, { flag: `${s} ${flag}`, page: 0, query: "" });
    showSentences(test);
    jump("sentences");
  };
  const says = `${label}, ${test.systems[s].name}: show ${counted(count, "sentence")}`;
  return h("button", { type: "button", class: "link", "aria-label": says, onclick: show }, number(count, 0));
}

function showSentences(test) {
  if (!test?.sentences?.src?.length) return fill("sentences", missing(test ? "The sentences were not kept with these scores." : NO_TEST));
  const names = (test.systems ?? []).map((system) => system.name);
  const corpus = { test, names, ref: [], hyps: [], scores: [], flags: [], ...test.sentences };
  const [sorts, filters] = [sortings(corpus), filterings(corpus)];
  const change = (what) => { Object.assign(view, { page: 0 }, what); update(); };
  const search = h("input", { type: "search", value: view.query, placeholder: "a word, or part of one", spellcheck: "false",
    oninput: () => change({ query: search.value }) });
  const sort = setOptions(h("select", { onchange: () => change({ sort: Number(sort.value) }) }), sorts.map((s) => s.label), view.sort);
  const flag = h("select", { onchange: () => change({ flag: flag.value }) });
  setOptions(flag, filters.map((f) => f.label), view.flag, filters.map((f) => f.value));
  const count = h("p", { role: "status", class: "note" });
  const cards = h("div", {});
  const pages = h("nav", { class: "pager", "aria-label": "Pages of sentences" });
  const turn = (page) => { view.page = page; update(); jump("sentences"); };
  const update = () => {
    const found = findSentences(corpus, sorts[view.sort], filters.find((f) => f.value === view.flag) ?? filters[0]);
    count.textContent = `${number(found.length, 0)} of ${counted(corpus.src.length, "sentence")}`;
    const shown = found.slice(view.page * PAGE, (view.page + 1) * PAGE).map((n) => sentenceCard(corpus, n));
    cards.replaceChildren(...(shown.length ? shown : [missing("No sentence matches. Search for less, or show all sentences.")]));
    pages.replaceChildren(...pager(Math.ceil(found.length / PAGE), turn));
    markHits(cards, folded(view.query));
  };
  const field = (label, control, kind = "") => h("label", { class: kind }, label, control);
  fill("sentences",
    h("div", { class: "controls" },
      field("Search source, reference and translations", search, "grow"), field("Order", sort), field("Show", flag)),
    corpus.ref.length > 0 && keyOfMarks(), count, cards, pages);
  return update();
}

function keyOfMarks() {
  return h("p", { class: "note" }, h("span", { class: "differ" }, "Bold and underlined"), ": not in the reference. ",
    h("span", { class: "lost" }, "Dotted"), ": in the reference, but not in every translation. Scores are sentence chrF.");
}

/** Ways to order sentences, each with the key that it sorts by, lowest first. */
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
      { label: `Largest gain, ${names[a]} to ${names[b]}`, key: (n) => score(a, n) - score(b, n) },
      { label: `Largest loss, ${names[a]} to ${names[b]}`, key: (n) => score(b, n) - score(a, n) }]),
  ];
}

function filterings({ test, names, flags }) {
  const filters = [{ value: "", label: "All sentences", keeps: () => true }];
  for (const [s, name] of names.entries()) {
    for (const flag of unique((flags[s] ?? []).flat())) {
      filters.push({ value: `${s} ${flag}`, label: `${flagLabel(test, flag)}: ${name}`, keeps: (n) => flags[s][n]?.includes(flag) });
    }
  }
  return filters;
}

function flagLabel(test, flag) {
  return (test.systems ?? []).flatMap((system) => system.diagnosis ?? []).find((item) => item.flag === flag)?.label ?? flag;
}

function findSentences(corpus, { key }, { keeps }) {
  const query = folded(view.query);
  const matches = (n) => !query || searchedText(corpus)[n].includes(query);
  const found = [...corpus.src.keys()].filter((n) => keeps(n) && matches(n));
  if (!key) return found;
  const keys = Float64Array.from(corpus.src, (_, n) => key(n));
  const rank = (n) => (Number.isNaN(keys[n]) ? Infinity : keys[n]); // a sentence without a score comes last
  return found.sort((a, b) => rank(a) - rank(b) || a - b);
}

/** All text of each sentence as a search wants it, prepared by the first search. */
function searchedText(corpus) {
  const all = (n) => [corpus.src[n], corpus.ref[n], ...corpus.hyps.map((hyp) => hyp[n])].join("\n");
  return (corpus.searched ??= corpus.src.map((_, n) => folded(all(n))));
}

function sentenceCard(corpus, n) {
  const { src, ref, hyps, scores, flags, names, test } = corpus;
  const reference = ref[n] === undefined ? null : segments(ref[n]);
  const compared = hyps.map((hyp) => reference && compareWords(reference, segments(hyp[n] ?? "")));
  const badges = (s) => (flags[s]?.[n] ?? []).map((flag) => h("span", { class: "flag" }, flagLabel(test, flag)));
  return h("article", { class: "sentence" },
    h("h3", {}, `Sentence ${number(n + 1, 0)}`, attentionButton(test, n)),
    row("Source", [src[n]]),
    reference && row("Reference", markedReference(reference, compared, names)),
    hyps.map((hyp, s) => row(named(names[s]), marked(segments(hyp[n] ?? ""), compared[s]?.hyp), scoreNote(scores, s, n), badges(s))));
}

function attentionButton(test, n) {
  const entry = (test.attention ?? []).findIndex((one) => one.sentence === n);
  const show = () => { view.entry = entry; showAttention(test); jump("attention"); };
  return entry >= 0 && h("button", { type: "button", class: "link", onclick: show }, "Attention");
}

function row(who, text, score = [], badges = []) {
  return h("div", { class: "row" }, h("span", { class: "who" }, who),
    h("div", { class: "said" }, h("div", { class: "text", dir: "auto" }, text), badges), h("span", { class: "score" }, score));
}

/** A system's score, and beside it the change to the first system. */
function scoreNote(scores, s, n) {
  const value = scores[s]?.[n];
  const change = s > 0 ? value - scores[0]?.[n] : NaN;
  const isChange = Math.abs(change) >= 0.05;
  const arrow = change > 0 ? "▲" : "▼";
  return [isChange && h("span", { class: change > 0 ? "up" : "down" }, `${arrow} ${number(Math.abs(change), 1)} `), number(value, 1)];
}

function marked(tokens, isKept) {
  const kindOf = (i) => (isKept && !isKept[i] ? "differ" : "");
  return stretches(tokens, kindOf).map(([kind, text]) => (kind ? h("span", { class: kind }, text) : text));
}

function markedReference(tokens, compared, names) {
  const losers = (i) => names.filter((_, s) => compared[s] && !compared[s].ref[i]).join(", ");
  return stretches(tokens, losers).map(([who, text]) => (who ? h("span", { class: "lost", title: `not in ${who}` }, text) : text));
}

/** Neighbours of one kind joined; space takes the kind of its neighbours where both agree. */
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

/** Words, punctuation and the space between, by the rules of Unicode: Chinese and Thai fall apart too. */
function segments(text) {
  const segmenter = (segments.segmenter ??= new Intl.Segmenter(undefined, { granularity: "word" }));
  return Array.from(segmenter.segment(text), (part) => part.segment);
}

function isSpace(token) {
  return /^\s*$/.test(token);
}

/** Which tokens of both sides stand in a longest common subsequence; null where that would take too long. */
function compareWords(ref, hyp) {
  const [refAt, hypAt] = [ref, hyp].map((tokens) => [...tokens.keys()].filter((i) => !isSpace(tokens[i])));
  const [rows, columns] = [refAt.length, hypAt.length];
  if (rows * columns > 2_000_000) return null;
  const length = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1)); // of what ref from i and hyp from j share
  const isSame = (i, j) => ref[refAt[i]] === hyp[hypAt[j]];
  for (let i = rows - 1; i >= 0; i--) {
    for (let j = columns - 1; j >= 0; j--) {
      length[i][j] = isSame(i, j) ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
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

/** What was searched for, lit by the browser over the marks of the words: no element changes. */
function markHits(root, query) {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.delete("hit");
  const ranges = query ? [...root.querySelectorAll(".text")].flatMap((text) => hitsIn(text, query)) : [];
  if (ranges.length) CSS.highlights.set("hit", new Highlight(...ranges));
}

function hitsIn(element, query) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const ends = []; // [text node, where in the whole text it ends]
  while (walker.nextNode()) ends.push([walker.currentNode, (ends.at(-1)?.[1] ?? 0) + walker.currentNode.length]);
  const text = folded(element.textContent);
  if (text.length !== element.textContent.length) return []; // folding moved the letters, as with a Turkish capital I
  const place = (at) => {
    const [node, end] = ends.find((one) => at <= one[1]);
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

function pager(pages, turn) {
  if (pages < 2) return [];
  const button = (label, text, page) => h("button", { type: "button", "aria-label": label, onclick: () => turn(page),
    disabled: page < 0 || page >= pages || page === view.page }, text);
  const input = h("input", { type: "number", min: 1, max: pages, value: view.page + 1, "aria-label": "Page",
    onchange: () => turn(clamp(Math.round(Number(input.value)) - 1 || 0, 0, pages - 1)) });
  return [button("First page", "«", 0), button("Page before", "‹", view.page - 1), input, `of ${number(pages, 0)}`,
    button("Next page", "›", view.page + 1), button("Last page", "»", pages - 1)];
}
