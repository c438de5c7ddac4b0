"""Verify that a converted model gives the same translations as the original.

Both engines translate the same lines. If the translations of a line differ, both engines score both
translations, to see whether they are a tie.
"""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mt.config import DecodeConfig
from mt.data.tokenizer import BOS_ID, EOS_ID
from mt.decode.search import max_output_len
from mt.decode.translator import Translator
from mt.errors import DataError

TIE = 1e-3  # smaller differences between scores are considered rounding errors
Translated = list[tuple[list[int], float]]  # (ids of the best hypothesis, score), for each source


class Engine(Protocol):
    """Runs a model on sentences given as ids, without end-of-sentence tokens."""

    @abstractmethod
    def translate(self, sources: Sequence[list[int]]) -> Translated:
        """Return the best hypothesis for each source, with its score."""

    @abstractmethod
    def score(self, source: list[int], target: list[int]) -> float:
        """Return the score of `target` as a translation of `source`.

        The score is the log-probability of the target, divided by length ** `length_penalty`. Both
        include the end-of-sentence token.
        """


@dataclass(frozen=True)
class Difference:
    """A line that two engines translate differently."""

    line: int
    hyp: str  # mt's translation
    other_hyp: str
    # The difference between the scores of both translations. Of the two engines' differences, the
    # larger one.
    gap: float

    @property
    def is_tie(self) -> bool:
        """Whether both engines score the two translations equally, except for rounding."""
        return self.gap < TIE


@dataclass(frozen=True)
class Parity:
    """The result of comparing the translations of two engines."""

    num_lines: int
    differences: list[Difference]
    score_gap: float  # the largest difference in score between identical translations

    @property
    def holds(self) -> bool:
        """Whether the engines count as equal.

        At least 995 of 1,000 translations must be identical, and all others must be ties. Identical
        translations must have equal scores, except for rounding. One tie is always allowed.
        """
        are_few = len(self.differences) <= max(1, 0.005 * self.num_lines)
        are_ties = all(difference.is_tie for difference in self.differences)
        return are_few and are_ties and self.score_gap < TIE

    def __str__(self) -> str:
        ties = sum(difference.is_tie for difference in self.differences)
        same = self.num_lines - len(self.differences)
        return (
            f"{same:,} of {self.num_lines:,} translations identical, scores within "
            f"{self.score_gap:.1e}; {ties} ties, {len(self.differences) - ties} real differences"
        )


def compare(translator: Translator, other: Engine, lines: Sequence[str]) -> Parity:
    """Translate `lines` with both engines, and compare the translations.

    Skips empty lines, and lines that are so long that `mt` would split them. Raises `DataError` if
    no lines remain.
    """
    longest = translator.decode.longest_src
    encoded = enumerate(translator.tokenizer.encode_src(lines), 1)
    kept = {number: ids for number, ids in encoded if 0 < len(ids) <= longest}
    if not kept:
        raise DataError("the text for --prove has no line that both engines can translate")
    sources, engine = list(kept.values()), MTEngine(translator)
    differences, score_gap = [], 0.0
    translations = zip(
        kept.items(), engine.translate(sources), other.translate(sources), strict=True
    )
    for (number, source), (hyp, score), (other_hyp, other_score) in translations:
        if hyp == other_hyp:
            score_gap = max(score_gap, abs(score - other_score))
            continue
        gap = max(
            abs(scorer.score(source, hyp) - scorer.score(source, other_hyp))
            for scorer in (engine, other)
        )
        text, other_text = (translator.tokenizer.decode_tgt(tokens) for tokens in (hyp, other_hyp))
        differences.append(Difference(number, text, other_text, gap))
    return Parity(len(sources), differences, score_gap)


def output_limit(decode: DecodeConfig, src_len: int) -> int:
    """Return the maximum output length for a source of `src_len` ids without an end token."""
    return max_output_len(src_len + 1, decode.max_len_a, decode.max_len_b)


def num_positions(decode: DecodeConfig) -> int:
    """Return the number of positions that an exported model supports, at least 1,024."""
    longest = decode.longest_src
    return max(1024, longest + 1, output_limit(decode, longest))


def by_source_length(
    sources: Sequence[list[int]],
    decode: DecodeConfig,
    translate: Callable[[Sequence[list[int]], int], Translated],
) -> Translated:
    """Translate `sources` in groups of equal length with `translate(sources, max_len)`.

    Other engines have a single maximum output length per call, but here it depends on the source.
    """
    results: Translated = [([], 0.0)] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for length, group in itertools.groupby(order, key=lambda i: len(sources[i])):
        indices = list(group)
        translated = translate([sources[i] for i in indices], output_limit(decode, length))
        for i, result in zip(indices, translated, strict=True):
            results[i] = result
    return results


class MTEngine:
    """An `Engine` that runs a `Translator` of `mt`."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator

    def translate(self, sources: Sequence[list[int]]) -> Translated:
        """Return the best hypothesis for each source, with its score."""
        return [(hyps[0].tokens, hyps[0].score) for hyps in self.translator.search(sources)]

    @torch.inference_mode()
    def score(self, source: list[int], target: list[int]) -> float:
        """Return the score of `target`, as defined by `Engine.score`."""
        model, device = self.translator.step_model, self.translator.compute.device
        src = torch.tensor([[*source, EOS_ID]], device=device)
        state = model.initial_state(src, torch.ones_like(src, dtype=torch.bool))
        total, previous = 0.0, BOS_ID
        for token in [*target, EOS_ID]:
            log_probs = model.step(torch.tensor([[previous]], device=device), state)[0, 0]
            total, previous = total + float(log_probs[token]), token
        return total / (len(target) + 1) ** self.translator.decode.length_penalty
