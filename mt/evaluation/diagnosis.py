"""Find suspicious translations with simple checks, and score groups of similar sentences.

The checks do not depend on the languages. They look for copies, loops, missing numbers and the
like. The groups ("buckets") show for which kind of sentences a system scores badly.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mt.evaluation.metrics import Metrics, corpus_scores

# Each edge is the largest value of a bucket.
LENGTH_EDGES = (5, 10, 15, 20, 30, 50)  # words in the source: 1-5, 6-10, ...
# How often the rarest word of the reference occurs in the training text: 0, 1-9, 10-99, ...
RARITY_EDGES = (0, 9, 99, 999)
# A translation is too long if it has more than this many times as many words as the reference, plus
# 5 words.
BLOW_UP = 2.0
MIN_COPIED = 4  # consecutive source words that count as copied if they are not in the reference
# A translation counts as detached from its source if `mt.report.contents.source_gain` is below this
# many nats per token. For a good Multi30k model, this holds for 0 of 1,000 test translations, and
# for 241 of 300 translations of sources with reversed letters.
DETACHED = 1.5
MIN_REPEATS = 3  # how often 1 to 4 words must be repeated in a row to count as a loop
WORD = re.compile(r"\w+(?:[-'’.,:]\w+)*")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
# Characters of scripts that are written without spaces, from Thai to Han.
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)

FLAGS = {
    "empty": "empty translations of non-empty sources",
    "copy": "untranslated copies",
    "loop": "repetition loops",
    "long": "length blow-ups",
    "number": "missing numbers",
    "name": "missing names",
    "script": "wrong script",
    "detached": "likely hallucinations (about as likely given another source)",
}


@dataclass(frozen=True)
class Bucket:
    """The sentences whose length or rarity is in a range, and each system's score for them."""

    label: str  # the range, such as `6-10`
    count: int  # number of sentences
    scores: list[float | None]  # one per system; None if all references are empty


def words(text: str) -> list[str]:
    """Split text into lowercase words without punctuation.

    In scripts that are written without spaces, every character counts as a word.
    """
    return [
        part
        for word in WORD.findall(text.lower())
        for part in (list(word) if UNSPACED.search(word) else [word])
    ]


def flags(src: str, ref: str, hyp: str, source_gain: float = math.inf) -> list[str]:
    """Return the keys of `FLAGS` that apply to one translation.

    Properties that the reference also has, such as a repetition, are not flagged. `source_gain` is
    the result of `mt.report.contents.source_gain` for this sentence, if there is a model.
    """
    src_words, ref_words, hyp_words = words(src), words(ref), words(hyp)
    checks = {
        "empty": bool(src.strip()) and not hyp.strip(),
        "copy": _is_copied(src_words, ref_words, hyp_words),
        "loop": _loops(hyp_words) > max(_loops(ref_words), _loops(src_words)),
        "long": len(hyp_words) > BLOW_UP * len(ref_words) + 5,
        "number": bool((_numbers(src) & _numbers(ref)) - _numbers(hyp)),
        "name": bool((_names(src) & _names(ref)) - set(WORD.findall(hyp))),
        "detached": bool(src.strip()) and source_gain < DETACHED,
        "script": bool(_script(ref)) and bool(_script(hyp)) and _script(hyp) != _script(ref),
    }
    return [name for name, fails in checks.items() if fails and (name == "empty" or hyp.strip())]


def _is_copied(src: list[str], ref: list[str], hyp: list[str]) -> bool:
    if not hyp or hyp == ref:
        return False
    if hyp == src:
        return True
    hyp_ngrams, src_ngrams, ref_ngrams = (_ngrams(side, MIN_COPIED) for side in (hyp, src, ref))
    return bool((hyp_ngrams & src_ngrams) - ref_ngrams)


def _ngrams(text: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}


def _loops(text: list[str]) -> int:
    """Return how often 1 to 4 words are repeated in a row, or 0 if fewer than `MIN_REPEATS`."""
    most = 1
    for length in range(1, 5):
        for start in range(len(text) - length):
            unit, repeats = text[start : start + length], 1
            while text[start + repeats * length : start + (repeats + 1) * length] == unit:
                repeats += 1
            most = max(most, repeats)
    return most if most >= MIN_REPEATS else 0


def _numbers(text: str) -> set[str]:
    return {re.sub(r"[.,]", "", number) for number in NUMBER.findall(text)}


def _names(text: str) -> set[str]:
    """Return the capitalized words, except the first word and all-caps words."""
    return {word for word in WORD.findall(text)[1:] if word[0].isupper() and not word.isupper()}


def _script(text: str) -> str:
    """Return the script of most letters, such as `LATIN`, or "" for fewer than three letters.

    Japanese kana count as `CJK`, like Chinese characters.
    """
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())
    scripts["CJK"] += scripts.pop("HIRAGANA", 0) + scripts.pop("KATAKANA", 0)
    return scripts.most_common(1)[0][0] if scripts.total() >= 3 else ""


def score_buckets(
    keys: Sequence[int],
    edges: Sequence[int],
    systems: Sequence[Sequence[str]],
    refs: Sequence[Sequence[str]],
    metrics: Metrics,
) -> list[Bucket]:
    """Group the sentences into buckets, and score each system on each bucket.

    `keys` has one number per sentence. A bucket contains the sentences whose number is at most the
    edge of the bucket and above the previous edge. The last bucket contains the sentences above all
    edges. Empty buckets are left out. The score is the corpus score of the first of `metrics`.
    """
    name = next(iter(metrics))
    buckets = []
    for low, high in zip((None, *edges), (*edges, None), strict=True):
        members = [
            i
            for i, key in enumerate(keys)
            if (low is None or key > low) and (high is None or key <= high)
        ]
        if not members:
            continue
        bucket_refs = [[ref[i] for i in members] for ref in refs]
        has_text = all(any(line.strip() for line in ref) for ref in bucket_refs)
        scores = [
            corpus_scores([hyps[i] for i in members], bucket_refs, metrics)[name].value
            if has_text
            else None
            for hyps in systems
        ]
        buckets.append(Bucket(_label(low, high), len(members), scores))
    return buckets


def _label(low: int | None, high: int | None) -> str:
    if high is None:
        return f"{(low or 0) + 1} or more"
    first = 0 if low is None and high == 0 else 1 if low is None else low + 1
    return str(high) if first == high else f"{first}-{high}"


def word_counts(lines: Iterable[str]) -> Counter[str]:
    """Count how often each word occurs."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(words(line))
    return counts


def rarest_word_counts(refs: Sequence[str], counts: Mapping[str, int]) -> list[int]:
    """For each reference, return how often its rarest word occurs, according to `counts`."""
    return [min((counts.get(word, 0) for word in words(ref)), default=0) for ref in refs]


def length_ratio(hyps: Sequence[str], refs: Sequence[str]) -> float:
    """Return the ratio of words in the translations to words in the references."""
    return sum(len(words(hyp)) for hyp in hyps) / max(1, sum(len(words(ref)) for ref in refs))
