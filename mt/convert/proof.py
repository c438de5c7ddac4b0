"""The proof that an exported model translates as the original does: line by line, and what differs
rescored by both engines.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mt.config import DecodeConfig
from mt.data.tokenizer import BOS_ID, EOS_ID
from mt.decode.search import max_output_len
from mt.decode.translator import Translator
from mt.errors import DataError

TIE = 1e-3  # between the scores of two translations: less is rounding


class Engine(Protocol):
    """A model at work, on ids without end of sentence."""

    def translate(self, sources: Sequence[list[int]]) -> list[tuple[list[int], float]]: ...
    def score(self, source: list[int], target: list[int]) -> float: ...


@dataclass(frozen=True)
class Difference:
    """A line that two engines translate differently: by how much each engine holds the one above
    the other.
    """

    line: int
    ours: str
    theirs: str
    gap: float  # of scores, the larger of the two engines'

    @property
    def is_tie(self) -> bool:
        """Whether no engine tells the translations apart by more than rounding."""
        return self.gap < TIE


@dataclass(frozen=True)
class Parity:
    """How two engines compare on some lines."""

    num_lines: int
    differences: list[Difference]
    score_gap: float  # the largest difference of scores on a line that both translate the same

    @property
    def holds(self) -> bool:
        """Whether at least 995 of 1,000 lines are identical (all but one of less than 200) and all
        others ties, and scores agree.
        """
        few = len(self.differences) <= max(1, 0.005 * self.num_lines)
        return (
            few
            and self.score_gap < TIE
            and all(difference.is_tie for difference in self.differences)
        )

    def __str__(self) -> str:
        ties = sum(difference.is_tie for difference in self.differences)
        same = self.num_lines - len(self.differences)
        return (
            f"{same:,} of {self.num_lines:,} translations identical, their scores within {self.score_gap:.1e}; "
            f"{ties} ties, {len(self.differences) - ties} that differ"
        )


def compare(translator: Translator, other: Engine, lines: Sequence[str]) -> Parity:
    """Translate `lines` with both; empty ones and over-long ones, which `mt` splits, are left out.
    Raises `DataError` if all are.
    """
    encoded = enumerate(translator.tokenizer.encode_src(lines), 1)
    taken = [
        (number, ids) for number, ids in encoded if 0 < len(ids) <= translator.decode.longest_src
    ]
    if not taken:
        raise DataError("the text to compare two engines on has no line that both can translate")
    numbers, sources = zip(*taken, strict=True)
    ours = OurEngine(translator)
    differences, score_gap = [], 0.0
    found = zip(numbers, sources, ours.translate(sources), other.translate(sources), strict=True)
    for number, source, (hyp, score), (other_hyp, other_score) in found:
        if hyp == other_hyp:
            score_gap = max(score_gap, abs(score - other_score))
            continue
        gap = max(
            abs(engine.score(source, hyp) - engine.score(source, other_hyp))
            for engine in (ours, other)
        )
        text, other_text = (translator.tokenizer.decode_tgt(tokens) for tokens in (hyp, other_hyp))
        differences.append(Difference(number, text, other_text, gap))
    return Parity(len(sources), differences, score_gap)


Found = list[tuple[list[int], float]]  # hypothesis and score


def by_source_length(
    sources: Sequence[list[int]],
    decode: DecodeConfig,
    translate: Callable[[Sequence[list[int]], int], Found],
) -> Found:
    """Translations of `sources`, those of one length together, as other engines have one limit of
    output length a call.
    """
    found: Found = [([], 0.0)] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for length, group in itertools.groupby(order, key=lambda i: len(sources[i])):
        indices = list(group)
        limit = max_output_len(length + 1, decode.max_len_a, decode.max_len_b)
        for i, result in zip(indices, translate([sources[i] for i in indices], limit), strict=True):
            found[i] = result
    return found


class OurEngine:
    """A `Translator` on ids."""

    def __init__(self, translator: Translator) -> None:
        self.translator = translator

    def translate(self, sources: Sequence[list[int]]) -> list[tuple[list[int], float]]:
        """The best hypothesis of each source, and its score."""
        return [(hyps[0].tokens, hyps[0].score) for hyps in self.translator.search(sources)]

    @torch.inference_mode()
    def score(self, source: list[int], target: list[int]) -> float:
        """Log-probability of a target and its end of sentence, over length**length_penalty."""
        model, device = self.translator.step_model, self.translator.compute.device
        src = torch.tensor([[*source, EOS_ID]], device=device)
        state = model.initial_state(src, torch.ones_like(src, dtype=torch.bool))
        total, previous = 0.0, BOS_ID
        for token in [*target, EOS_ID]:
            log_probs = model.step(torch.tensor([[previous]], device=device), state)[0, 0]
            total, previous = total + float(log_probs[token]), token
        return total / (len(target) + 1) ** self.translator.decode.length_penalty
