"""Test that `evaluate` calls the translator, scores its output, and does nothing else."""

from collections.abc import Sequence

import pytest

from mt.errors import DataError
from mt.evaluation import build_metrics, corpus_scores
from mt.evaluation.evaluate import evaluate


def upper(lines: Sequence[str]) -> list[str]:
    """Stand in for a translator by returning the text in capitals."""
    return [line.upper() for line in lines]


SRC = ["the cat sat on the mat today", "a dog barked at the red car"]
REF = ["THE CAT SAT ON THE MAT TODAY", "A DOG BARKED AT A RED CAR"]


def test_an_evaluation_is_the_translations_and_their_corpus_scores() -> None:
    found = evaluate(upper, SRC, [REF])
    assert found.hyps == [line.upper() for line in SRC]
    assert found.scores == corpus_scores(found.hyps, [REF])
    assert list(found.scores) == ["bleu", "chrf", "ter"]
    assert 0 < found.scores["bleu"].value < 100
    assert 0 <= found.seconds < 10


def test_only_the_metrics_asked_for_are_scored() -> None:
    assert list(evaluate(upper, SRC, [REF], build_metrics(["chrf"])).scores) == ["chrf"]


@pytest.mark.parametrize(("src", "ref"), [(SRC, REF[:1]), ([], [])])
def test_unequal_or_empty_sides_are_an_error(src: list[str], ref: list[str]) -> None:
    with pytest.raises(DataError):
        evaluate(upper, src, [ref])
