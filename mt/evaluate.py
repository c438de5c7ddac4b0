"""Scoring a model on a test set: the one path that `mt evaluate` and validation in training both take."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from mt.decode.translator import Translator
from mt.metrics import Score, corpus_scores


@dataclass(frozen=True)
class Evaluation:
    """Translations of a test set, their scores, and how long translating took."""

    hyps: list[str]
    scores: dict[str, Score]
    seconds: float


def evaluate(
    translator: Translator, src: Sequence[str], ref: Sequence[str], metrics: Sequence[str] = ("bleu", "chrf", "ter")
) -> Evaluation:
    """Translate `src` and score against `ref`, line by line. Raises `DataError` for unequal or empty sides."""
    began = time.perf_counter()
    hyps = translator.translate(src)
    seconds = time.perf_counter() - began
    return Evaluation(hyps, corpus_scores(hyps, ref, metrics), seconds)
