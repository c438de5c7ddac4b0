"""Scoring translations of a test set as they are made: the one path that `mt evaluate` and validation in training both take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mt.evaluation import Metrics, Score, corpus_scores


@dataclass(frozen=True)
class Evaluation:
    """Translations of a test set, their scores, and how long translating took."""

    hyps: list[str]
    scores: dict[str, Score]
    seconds: float


def evaluate(
    translate: Callable[[Sequence[str]], list[str]],
    src: Sequence[str],
    refs: Sequence[Sequence[str]],
    metrics: Metrics | None = None,
    resamples: int = 0,
) -> Evaluation:
    """`translate` the lines of `src` and score against one or more references, line by line: see `corpus_scores`."""
    began = time.perf_counter()
    hyps = translate(src)
    seconds = time.perf_counter() - began
    return Evaluation(hyps, corpus_scores(hyps, refs, metrics, resamples), seconds)
