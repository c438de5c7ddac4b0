"""Compare paired tests with the `sacrebleu` command, and check their rate of false positives."""

import random
from pathlib import Path

import pytest

from mt.errors import DataError
from mt.evaluation import KINDS, build_metrics
from mt.evaluation.significance import paired_tests
from tests.evaluation.texts import CORPORA, Corpus, noisy, sacrebleu, sample_text


@pytest.mark.parametrize("kind", ["bs", "ar"])
@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.name)
def test_scores_intervals_and_p_values_are_those_of_the_sacrebleu_command(
    corpus: Corpus, kind: str, tmp_path: Path
) -> None:
    refs = corpus.read()
    systems = {
        "base": noisy(refs),
        "near": [*noisy(refs)[:-8], *refs[-8:]],
        "other": noisy(refs, seed=4),
    }
    options = [f"--paired-{kind}", f"--paired-{kind}-n", "300"]
    command_scores = sacrebleu(
        tmp_path, [refs], list(systems.values()), "-m", "bleu", "chrf", *options, *corpus.options
    )
    metrics = build_metrics(["bleu", "chrf"], corpus.lang)
    comparisons = paired_tests(systems, [refs], metrics, kind, 300)  # type: ignore[arg-type]
    assert [(c.score.name, c.baseline, c.system) for c in comparisons] == [
        (name, "base", system) for name in ("bleu", "chrf") for system in ("near", "other")
    ]
    for comparison in comparisons:
        title = "BLEU" if comparison.score.name == "bleu" else "chrF2"
        index = list(systems).index(comparison.system)
        command_score, base = command_scores[index][title], command_scores[0][title]
        for score, expected in (
            (comparison.score, command_score),
            (comparison.baseline_score, base),
        ):
            assert score.value == pytest.approx(expected["score"], abs=1e-6)
            if kind == "bs":  # the command prints an interval only for the bootstrap
                assert score.interval is not None
                assert score.interval.mean == pytest.approx(expected["mean"], abs=1e-4)
                assert score.interval.half_width == pytest.approx(expected["ci"], abs=1e-4)
        assert comparison.p_value == pytest.approx(command_score["p_value"], abs=1e-6)


def test_identical_systems_have_no_difference_and_no_p_value() -> None:
    refs = sample_text()
    (found,) = paired_tests(
        {"a": noisy(refs), "b": noisy(refs)}, [refs], build_metrics(["bleu"]), "bs", 100
    )
    assert found.difference == 0
    assert found.p_value is None
    assert not found.is_significant


def test_a_clear_difference_is_found_and_lower_is_better_for_ter() -> None:
    refs = sample_text()
    (found,) = paired_tests(
        {"worse": noisy(noisy(refs), seed=9), "better": noisy(refs)},
        [refs],
        build_metrics(["ter"]),
        "ar",
        300,
    )
    assert found.is_significant
    assert found.difference < 0
    assert found.is_better


def test_about_one_in_twenty_of_200_equal_pairs_is_called_different() -> None:
    """Make equally good systems by swapping two systems' outputs at random, line by line.

    At the 5 % level, a correct test then reports a difference for 3 to 18 of 200 pairs (with 99 %
    probability). This holds for randomization, and if both tests must agree. sacreBLEU's bootstrap
    alone is wrong about twice as often: it takes the absolute values of the resampled differences
    before it subtracts their mean, which practically makes it a one-sided test.
    """
    refs = sample_text()
    first, second = noisy(refs), noisy(refs, seed=4)
    metrics = build_metrics(["chrf"])
    rejected = {"bs": 0, "ar": 0, "both": 0}
    for seed in range(200):
        swap = random.Random(seed)
        pairs = [
            (a, b) if swap.random() < 0.5 else (b, a) for a, b in zip(first, second, strict=True)
        ]
        a, b = zip(*pairs, strict=True)
        significant = {
            kind: paired_tests({"a": a, "b": b}, [refs], metrics, kind, 200)[0].is_significant
            for kind in KINDS
        }
        significant["both"] = all(significant.values())  # type: ignore[index]
        for kind, is_significant in significant.items():
            rejected[kind] += is_significant
    assert 3 <= rejected["ar"] <= 18, rejected
    assert 3 <= rejected["both"] <= 18, rejected


def test_a_system_with_a_different_number_of_lines_is_rejected() -> None:
    with pytest.raises(DataError, match="1 translations but 2 references"):
        paired_tests({"a": ["x", "y"], "b": ["x"]}, [["x", "y"]], build_metrics(["bleu"]))
