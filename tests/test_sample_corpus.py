"""Tests of the sample corpus: its size, grammar and vocabulary, and that it cannot be translated by
looking up similar training sentences.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "sample"
sys.path.insert(0, str(ROOT / "scripts/corpus"))

import make_sample as maker  # noqa: E402
import sample_grammar as grammar  # noqa: E402

PARTS = {"train": 20_000, "valid": 1_000, "test": 1_000}
LANGUAGES = ("de", "en")


def read(part: str, language: str) -> list[str]:
    """Return the lines of one file of the corpus."""
    return (DATA / f"{part}.{language}").read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def corpus() -> dict[tuple[str, str], list[str]]:
    """Return the lines of the six files, keyed by part and language."""
    return {(part, language): read(part, language) for part in PARTS for language in LANGUAGES}


@pytest.fixture(scope="module")
def pairs(corpus: dict[tuple[str, str], list[str]]) -> list[tuple[str, str]]:
    """Return all (German, English) pairs of the three parts."""
    return [
        pair for part in PARTS for pair in zip(corpus[part, "de"], corpus[part, "en"], strict=True)
    ]


def test_the_generator_reproduces_the_committed_files(tmp_path: Path) -> None:
    maker.main(["--out", str(tmp_path)])
    for part in PARTS:
        for language in LANGUAGES:
            name = f"{part}.{language}"
            assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name


def test_another_seed_draws_other_sentences() -> None:
    assert maker.draw_pairs(1, 50) != maker.draw_pairs(2, 50)
    assert maker.draw_pairs(1, 50) == maker.draw_pairs(1, 50)


def test_each_part_has_its_number_of_pairs(corpus: dict[tuple[str, str], list[str]]) -> None:
    for part, size in PARTS.items():
        assert [len(corpus[part, language]) for language in LANGUAGES] == [size, size]


def test_files_are_utf8_with_plain_line_ends() -> None:
    for part in PARTS:
        for language in LANGUAGES:
            raw = (DATA / f"{part}.{language}").read_bytes()
            assert b"\r" not in raw
            assert raw[-1:] == b"\n" != raw[-2:-1]
            assert raw.decode("utf-8").count("\n") == PARTS[part]


def test_no_german_source_has_two_targets(pairs: list[tuple[str, str]]) -> None:
    targets = defaultdict(set)
    for german, english in pairs:
        targets[german].add(english)
    assert max(map(len, targets.values())) == 1


def test_no_sentence_occurs_twice_in_any_part(
    corpus: dict[tuple[str, str], list[str]],
) -> None:
    for language in LANGUAGES:
        lines = [line for part in PARTS for line in corpus[part, language]]
        assert len(set(lines)) == len(lines) == sum(PARTS.values())


def test_sentences_have_at_least_eight_words_on_average_and_keep_to_their_limits(
    pairs: list[tuple[str, str]],
) -> None:
    for side in (0, 1):
        lengths = [len(pair[side].split()) for pair in pairs]
        assert sum(lengths) / len(lengths) >= 8
        assert min(lengths) == maker.SHORTEST
        assert 18 <= max(lengths) <= maker.LONGEST


def test_sentences_start_with_a_capital_and_end_with_a_full_stop_or_question_mark(
    pairs: list[tuple[str, str]],
) -> None:
    for german, english in pairs:
        for line in (german, english):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß0-9, ]*[a-zäöüß][.?]", line), line
            assert not re.search(" [ ,.?]", line), line
        assert german[-1] == english[-1]


def occurrences(forms: set[str], words: Counter[str], text: str) -> int:
    """Return how often the forms occur: single words in `words`, phrases in `text`."""
    single = sum(words[form] for form in {form.lower() for form in forms} if " " not in form)
    several = sum(
        text.count(f" {form} ") for form in {form.lower() for form in forms} if " " in form
    )
    return single + several


@pytest.mark.parametrize(("language", "side"), [("de", 0), ("en", 1)])
def test_at_least_300_lemmas_are_frequent_in_train(
    corpus: dict[tuple[str, str], list[str]], language: str, side: int
) -> None:
    lexicon = grammar.lexicon()[side]
    text = " " + re.sub(r"[.,?]", " ", " ".join(corpus["train", language])).lower() + " "
    words = Counter(text.split())
    names = {
        *grammar.WOMEN,
        *grammar.MEN,
        *(city.de for city in grammar.CITIES),
        *(city.en for city in grammar.CITIES),
    }
    rare = {
        lemma: count
        for lemma, forms in lexicon.items()
        if (count := occurrences(forms, words, text)) < 20
    }
    assert rare == {}
    assert len(set(lexicon) - names) >= 300


PHENOMENA_DE = {
    "a fronted adverb before the verb": (
        r"^(Gestern|Vorgestern|Letzte Woche|Am \w+tag) (hat|haben|ist|sind) ",
        300,
    ),
    "a fronted place before the verb": (
        r"^(Im|Am|In \w+|Auf \w+) \w+ (hat|haben|gibt|ist|sind) ",
        200,
    ),
    "a fronted object before the verb": (r"^(Den|Dem|Einen|Einem|Diesen|Diesem) ", 100),
    "weil with the verb last": (
        r", weil [^,]* (war|waren|ist|sind|hat|haben|hatte|hatten|musste|wollte)\.$",
        300,
    ),
    "obwohl with the verb last": (
        r", obwohl [^,]* (war|waren|ist|sind|hat|hatte|hatten|musste|mussten)\.$",
        200,
    ),
    "a fronted subordinate clause": (r"^(Weil|Obwohl|Wenn|Bevor|Sobald|Während) [^,]*, \w+ ", 500),
    "dass": (r", dass ", 500),
    "a separable verb with its prefix last": (
        r" (auf|an|ab|aus|ein|mit|weg|zurück|zu|vor)[.?]$",
        150,
    ),
    "a separable verb joined in a subordinate clause": (
        r" (aufsteht|aufstehen|ankommt|zurückkommt|einkauft)\b",
        30,
    ),
    "a separable participle": (
        r" (aufgestanden|eingeschlafen|eingeladen|abgeholt|angerufen|mitgebracht)\b",
        300,
    ),
    "a separable infinitive with zu": (r" (auf|an|ab|aus|ein|mit|vor|fern)zu\w+en[.?]$", 30),
    "the perfect with sein": (
        r"\b(ist|sind|bin|bist|seid) [^,]*(gegangen|gefahren|gekommen|geflogen|gereist)\b",
        500,
    ),
    "the perfect with haben": (r"\b(hat|haben|habe|hast|habt) [^,]*ge\w+(t|en)[.,?]", 3000),
    "a modal verb with the infinitive last": (
        r"\b(kann|muss|will|soll|darf|möchte|musste|konnte)\w* [^,]*en[.,?]",
        600,
    ),
    "um ... zu": (r", um [^,]* zu \w+n\.", 300),
    "a nominative relative pronoun": (
        r", (der|die|das) [^,]* (hat|haben|ist|sind|wohnt|besitzt)[.,]",
        500,
    ),
    "an accusative relative pronoun": (
        r" (Mann|Lehrer|Gast|Freund|Fahrer|Schal|Ring|Stift|Roman|Brief), den ",
        40,
    ),
    "a dative relative pronoun": (
        r", (mit )?(dem|der|denen) [^,]*(geholfen|gesprochen|gedankt|gratuliert)",
        20,
    ),
    "nicht": (r"\bnicht\b", 800),
    "kein": (r"\bkein(e|en|em|er)?\b", 300),
    "a yes/no question": (r"^(Hat|Haben|Ist|Kann|Muss|Wird|Liest|Will)\b.*\?$", 200),
    "a wh-question": (r"^(Wer|Wen|Wem|Wann|Wo|Warum|Welche\w*)\b.*\?$", 500),
    "weak nouns with an ending": (
        r"\b(den|dem|diesen|diesem|einen|einem) (\w+en )?(Studenten|Polizisten|Matrosen)\b",
        100,
    ),
    "weak, mixed and strong adjectives": (
        r"\bder \w+e [A-Z].*|\bein \w+er [A-Z].*|\bkalte Milch",
        600,
    ),
    "contractions": (r"\b([Ii]m|[Aa]m|[Ii]ns|[Zz]um|[Zz]ur)\b", 2000),
    "numbers in words": (r"\b(zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|zwölf)\b", 500),
    "numbers in digits": (r"\b\d\d\b", 200),
}
PHENOMENA_EN = {
    "do-support": (r"\b([Dd]oes|[Dd]o|[Dd]id)\b", 1000),
    "the third person s": (r"\b(reads|watches|carries|goes|has)\b", 200),
    "an irregular past": (r"\b(wrote|bought|gave|went|caught|drove|saw)\b", 600),
    "an before a vowel": (
        r"\ban (old|apple|honest|egg|expensive|interesting|uncle|umbrella|exciting)\b",
        200,
    ),
    "who and whom of people": (r" (who|whom) ", 500),
    "which of things": (r"\w which (the|my|your|\w+) ", 200),
    "the progressive": (r"\b(is|are|am) .*\w+ing .*(right now|now|at the moment)", 500),
}


@pytest.mark.parametrize("name", PHENOMENA_DE)
def test_a_german_phenomenon_is_frequent(
    corpus: dict[tuple[str, str], list[str]], name: str
) -> None:
    pattern, least = PHENOMENA_DE[name]
    assert sum(bool(re.search(pattern, line)) for line in corpus["train", "de"]) >= least


@pytest.mark.parametrize("name", PHENOMENA_EN)
def test_an_english_phenomenon_is_frequent(
    corpus: dict[tuple[str, str], list[str]], name: str
) -> None:
    pattern, least = PHENOMENA_EN[name]
    assert sum(bool(re.search(pattern, line)) for line in corpus["train", "en"]) >= least


def test_prepositions_are_always_contracted_with_the_article(
    corpus: dict[tuple[str, str], list[str]],
) -> None:
    long_form = re.compile(
        r"\b(in|an|zu|von|bei) dem [A-Z]|\bzu der\b|\b(in|an) das [A-Z]", re.IGNORECASE
    )
    assert [
        line for line in corpus["train", "de"] if long_form.search(line) and ", " not in line
    ] == []


def test_the_english_article_fits_the_next_word(corpus: dict[tuple[str, str], list[str]]) -> None:
    wrong = re.compile(r"\b(a [aeio]|an [b-dfgj-np-tv-z])", re.IGNORECASE)
    assert [line for line in corpus["train", "en"] if wrong.search(line)] == []


def test_names_are_the_same_on_both_sides(pairs: list[tuple[str, str]]) -> None:
    names = {
        *grammar.WOMEN,
        *grammar.MEN,
        *(city.de for city in grammar.CITIES if city.de == city.en),
    }
    assert len(names) >= 85
    for german, english in pairs:
        sides = [
            Counter(word for word in re.findall(r"\w+", line) if word in names)
            for line in (german, english)
        ]
        assert sides[0] == sides[1], german


def test_digits_are_the_same_on_both_sides(pairs: list[tuple[str, str]]) -> None:
    assert all(
        re.findall(r"\d+", german) == re.findall(r"\d+", english) for german, english in pairs
    )


def test_verbs_are_inflected_by_person() -> None:
    verbs = {verb.infinitive: verb for verb in grammar.VERBS}
    forms = {
        name: " ".join(grammar.present(verbs[name], row) for row in range(6)) for name in verbs
    }
    assert forms["lesen"] == "lese liest liest lesen lest lesen"
    assert forms["arbeiten"] == "arbeite arbeitest arbeitet arbeiten arbeitet arbeiten"
    assert forms["sammeln"] == "sammle sammelst sammelt sammeln sammelt sammeln"
    assert forms["spielen"] == "spiele spielst spielt spielen spielt spielen"
    assert forms["einladen"] == "lade lädst lädt laden ladet laden"
    assert forms["öffnen"] == "öffne öffnest öffnet öffnen öffnet öffnen"


def test_noun_phrases_agree_in_case_and_gender() -> None:
    old = next(adjective for adjective in grammar.ADJECTIVES if adjective.de == "alt")
    dear = next(adjective for adjective in grammar.ADJECTIVES if adjective.de == "teuer")
    student = grammar.noun_phrase(grammar.NOUN["Student"], "ein", False, old)
    assert student.cases == ("ein alter Student", "einen alten Studenten", "einem alten Studenten")
    books = grammar.noun_phrase(grammar.NOUN["Buch"], "", True, dear)
    assert books.cases == ("teure Bücher", "teure Bücher", "teuren Büchern")
    assert grammar.noun_phrase(grammar.NOUN["Apfel"], "ein", False, None).en == "an apple"


def test_word_order_follows_the_kind_of_clause() -> None:
    verb = next(verb for verb in grammar.VERBS if verb.infinitive == "aufstehen")
    clause = grammar.Clause(
        grammar.PRONOUNS[2], verb, "pres", time=grammar.Pair("morgen", "tomorrow")
    )
    assert grammar.german_main(clause) == "er steht morgen auf"
    assert grammar.german_main(clause, "time") == "morgen steht er auf"
    assert grammar.german_last(clause) == "er morgen aufsteht"
    assert grammar.german_infinitive(clause) == "morgen aufzustehen"


def ngrams(line: str) -> Counter[str]:
    """Count the word n-grams of a sentence up to length four."""
    words = re.findall(r"\w+|[.,?]", line)
    return Counter(
        " ".join(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)
    )


def nearest(train: list[str], test: list[str]) -> list[int]:
    """Return, for each test sentence, the index of the most similar train sentence.

    The similarity is the F1 score of shared n-grams.
    """
    postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
    sizes = np.zeros(len(train))
    for index, line in enumerate(train):
        counts = ngrams(line)
        sizes[index] = sum(counts.values())
        for ngram, count in counts.items():
            postings[ngram].append((index, count))
    arrays = {ngram: np.array(rows).T for ngram, rows in postings.items()}
    return [int(np.argmax(_f1_scores(ngrams(line), arrays, sizes))) for line in test]


def _f1_scores(
    line_counts: Counter[str], arrays: dict[str, np.ndarray], sizes: np.ndarray
) -> np.ndarray:
    shared = np.zeros(len(sizes))
    for ngram, count in line_counts.items():
        if ngram in arrays:
            indices, counts = arrays[ngram]
            shared[indices] += np.minimum(count, counts)
    return 2 * shared / (sizes + sum(line_counts.values()))


def test_the_nearest_train_sentence_is_a_poor_translation(
    corpus: dict[tuple[str, str], list[str]],
) -> None:
    test = corpus["test", "de"]
    hyps = [corpus["train", "en"][index] for index in nearest(corpus["train", "de"], test)]
    score = sacrebleu.corpus_bleu(hyps, [corpus["test", "en"]]).score
    assert 5 < score <= 50
    assert nearest(corpus["train", "de"][:50], corpus["train", "de"][7:9]) == [7, 8]
