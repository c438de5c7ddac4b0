"""What is wrong with a translation that can be seen without understanding it, and where scores are
lost.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mt.evaluation.metrics import Metrics, corpus_scores

LENGTH_EDGES = (5, 10, 15, 20, 30, 50)  # words of the source: 1-5, 6-10, ...
RARITY_EDGES = (
    0,
    9,
    99,
    999,
)  # how often training saw the rarest word of the reference: never, 1-9, ...
BLOW_UP = 2.0  # a translation of more than this many times the reference's words, and 5 more
MIN_COPIED = 4  # words in a row that stand in the source and not in the reference
# nats a token: none of 1,000 translations of Multi30k is below, 241 of 300 of letters in reverse
DETACHED = 1.5
MIN_REPEATS = 3  # of 1 to 4 words in a row
WORD = re.compile(r"\w+(?:[-'’.,:]\w+)*")
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
)  # Thai to Han

FLAGS = {
    "empty": "nothing where the source has something",
    "copy": "untranslated copies",
    "loop": "repetition loops",
    "long": "length blow-ups",
    "number": "missing numbers",
    "name": "missing names",
    "script": "wrong script",
    "detached": "likely hallucinations: about as likely with another source",
}


@dataclass(frozen=True)
class Bucket:
    """Some of the sentences, by what they have in common, and a score for each system."""

    label: str
    count: int
    scores: list[float | None]  # None where all references are empty


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; in scripts without spaces, characters."""
    return [
        part
        for word in WORD.findall(text.lower())
        for part in (list(word) if UNSPACED.search(word) else [word])
    ]


def flags(src: str, ref: str, hyp: str, source_gain: float = math.inf) -> list[str]:
    """Those of `FLAGS` that one translation earns; what the reference does too is no fault.

    `source_gain` is that of `mt.report.contents.source_gain`, where a model is at hand.
    """
    src_words, ref_words, hyp_words = words(src), words(ref), words(hyp)
    found = {
        "empty": bool(src.strip()) and not hyp.strip(),
        "copy": _is_copied(src_words, ref_words, hyp_words),
        "loop": _loops(hyp_words) > max(_loops(ref_words), _loops(src_words)),
        "long": len(hyp_words) > BLOW_UP * len(ref_words) + 5,
        "number": bool((_numbers(src) & _numbers(ref)) - _numbers(hyp)),
        "name": bool((_names(src) & _names(ref)) - set(WORD.findall(hyp))),
        "detached": bool(src.strip()) and source_gain < DETACHED,
        "script": bool(_script(ref)) and bool(_script(hyp)) and _script(hyp) != _script(ref),
    }
    return [name for name, is_so in found.items() if is_so and (name == "empty" or hyp.strip())]


def _is_copied(src: list[str], ref: list[str], hyp: list[str]) -> bool:
    if not hyp or hyp == ref:
        return False
    if hyp == src:
        return True
    runs = [_runs(side, MIN_COPIED) for side in (hyp, src, ref)]
    return bool((runs[0] & runs[1]) - runs[2])


def _runs(text: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(text[i : i + length]) for i in range(len(text) - length + 1)}


def _loops(text: list[str]) -> int:
    """The most times that 1 to 4 words follow on themselves; 0 below `MIN_REPEATS`."""
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
    """Words with a capital letter that do not begin the sentence."""
    return {word for word in WORD.findall(text)[1:] if word[0].isupper() and not word.isupper()}


def _script(text: str) -> str:
    """The script of most letters, such as LATIN; empty where there are fewer than three. Japanese
    counts as Han.
    """
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())
    scripts["CJK"] += scripts.pop("HIRAGANA", 0) + scripts.pop("KATAKANA", 0)
    return scripts.most_common(1)[0][0] if scripts.total() >= 3 else ""


def bucketed(
    keys: Sequence[int],
    edges: Sequence[int],
    systems: Sequence[Sequence[str]],
    refs: Sequence[Sequence[str]],
    metrics: Metrics,
) -> list[Bucket]:
    """Corpus scores by the first of `metrics` of the sentences whose key is at most each edge, and
    above the last; empty ones left out.
    """
    [name] = list(metrics)[:1]
    buckets = []
    for low, high in zip((None, *edges), (*edges, None), strict=True):
        members = [
            i
            for i, key in enumerate(keys)
            if (low is None or key > low) and (high is None or key <= high)
        ]
        if not members:
            continue
        scored = [[ref[i] for i in members] for ref in refs]
        has_text = all(any(line.strip() for line in ref) for ref in scored)
        scores = [
            corpus_scores([hyps[i] for i in members], scored, metrics)[name].value
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
    """How often each word stands in a text."""
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(words(line))
    return counts


def rarity(refs: Sequence[str], counts: Mapping[str, int]) -> list[int]:
    """How often training saw the rarest word of each reference."""
    return [min((counts.get(word, 0) for word in words(ref)), default=0) for ref in refs]


def length_ratio(hyps: Sequence[str], refs: Sequence[str]) -> float:
    """Words of the translations to words of the references."""
    return sum(len(words(hyp)) for hyp in hyps) / max(1, sum(len(words(ref)) for ref in refs))
