"""Whether one system is better than another, or luckier: sacreBLEU's paired tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sacrebleu.significance import PairedTest, Result

from mt.config.ranking import is_better
from mt.evaluation.metrics import Interval, Metrics, Score, check_lines

Kind = Literal["bs", "ar"]
KINDS: dict[Kind, str] = {"bs": "paired bootstrap", "ar": "paired approximate randomization"}
LEVEL = 0.05  # of significance


@dataclass(frozen=True)
class Comparison:
    """One metric of a system beside that of the baseline, tested."""

    baseline: str
    system: str
    kind: Kind
    baseline_score: Score
    score: Score
    p_value: float | None  # None where both score the same: there is no difference to test

    @property
    def difference(self) -> float:
        """Of the system to the baseline, in points."""
        return self.score.value - self.baseline_score.value

    @property
    def is_significant(self) -> bool:
        """At the 5 % level."""
        return self.p_value is not None and self.p_value < LEVEL

    @property
    def is_better(self) -> bool:
        """Whether the system has the better score, chance or not."""
        return is_better(self.score.name, self.score.value, self.baseline_score.value)


def paired_tests(
    systems: Mapping[str, Sequence[str]],
    refs: Sequence[Sequence[str]],
    metrics: Metrics,
    kind: Kind = "bs",
    samples: int = 0,
) -> list[Comparison]:
    """Each system but the first against the first, metric by metric, as `sacrebleu --paired-bs` and
    `--paired-ar` do.

    bs resamples the lines (Koehn 2004), ar swaps the two systems' outputs at random (Riezler and
    Maxwell 2005). `samples` 0 is sacreBLEU's default: 1,000 and 10,000. With bs scores have
    intervals. Of two equal systems ar finds a difference in 1 of 20 pairs, bs, whose p-values are
    as good as one-sided, in 2 of 20. Raises `DataError` for lines that do not match.
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
