"""sacreBLEU's paired significance tests: is a system really better, or was it just lucky?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sacrebleu.significance import PairedTest, Result

from mt.config.ranking import is_better
from mt.evaluation.metrics import Interval, Metrics, Score, check_lines

Kind = Literal["bs", "ar"]
KINDS: dict[Kind, str] = {"bs": "paired bootstrap", "ar": "paired approximate randomization"}
LEVEL = 0.05  # differences with a smaller p-value count as significant


@dataclass(frozen=True)
class Comparison:
    """A baseline's and a system's score in one metric, and the result of one test."""

    baseline: str
    system: str
    kind: Kind
    baseline_score: Score
    score: Score
    p_value: float | None  # None if both have the same score, so there is nothing to test

    @property
    def difference(self) -> float:
        """The system's score minus the baseline's."""
        return self.score.value - self.baseline_score.value

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant at the 5 % level."""
        return self.p_value is not None and self.p_value < LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the system has the better score, even if the difference is not significant."""
        return is_better(self.score.name, self.score.value, self.baseline_score.value)


def paired_tests(
    systems: Mapping[str, Sequence[str]],
    refs: Sequence[Sequence[str]],
    metrics: Metrics,
    kind: Kind = "bs",
    samples: int = 0,
) -> list[Comparison]:
    """Test every other system against the first one, for each metric.

    The results are the same as with `sacrebleu --paired-bs` and `--paired-ar`. The kind `bs`
    resamples lines (Koehn 2004) and also gives each score an interval. The kind `ar` randomly swaps
    the outputs of the two systems (Riezler and Maxwell 2005). If `samples` is 0, it is sacreBLEU's
    default: 1,000 for `bs` and 10,000 for `ar`. For two equally good systems, `ar` reports a
    significant difference in 1 of 20 cases, and `bs` in 2 of 20, because its p-values are
    practically one-sided. Raises
    `DataError` if line counts differ.
    """
    for hyps in systems.values():
        check_lines(hyps, refs)
    test = PairedTest(
        [(name, list(hyps)) for name, hyps in systems.items()],
        metrics,
        [list(ref) for ref in refs],
        kind,
        samples,
        n_ar_confidence=0,
    )
    signatures, results = test()
    baseline, *others = systems
    comparisons = []
    for name, title in zip(metrics, signatures, strict=True):
        signature = str(signatures[title])
        first, *rest = (_score(name, result, signature) for result in results[title])
        for system, (score, p_value) in zip(others, rest, strict=True):
            p_value = None if score.value == first[0].value else p_value
            comparisons.append(Comparison(baseline, system, kind, first[0], score, p_value))
    return comparisons


def _score(name: str, result: "str | Result", signature: str) -> tuple[Score, float | None]:
    assert isinstance(result, Result)
    interval = (
        None
        if result.mean is None or result.ci is None
        else Interval(float(result.mean), float(result.ci))
    )
    return Score(name, float(result.score), signature, interval), result.p_value
