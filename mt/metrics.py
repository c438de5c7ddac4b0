"""Scores of translations: sacreBLEU's BLEU, chrF and TER, each with the signature that makes it comparable."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from mt.errors import DataError

METRICS = {"bleu": BLEU, "chrf": CHRF, "ter": TER}
TITLES = {"bleu": "BLEU", "chrf": "chrF", "ter": "TER", "loss": "loss"}


@dataclass(frozen=True)
class Score:
    """One number, what it measures and how."""

    name: str
    value: float
    signature: str

    def __str__(self) -> str:
        return f"{TITLES.get(self.name, self.name)} {self.value:.2f}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def corpus_scores(
    hyps: Sequence[str], refs: Sequence[str], metrics: Sequence[str] = ("bleu", "chrf", "ter")
) -> dict[str, Score]:
    """Corpus scores by metric name, as the `sacrebleu` command computes them with its defaults.

    Raises `DataError` where the numbers of lines differ or there are none.
    """
    if len(hyps) != len(refs):
        raise DataError(f"{len(hyps):,} translations but {len(refs):,} references; they must match line by line")
    if not refs:
        raise DataError("no lines to score")
    scores = {}
    for name in metrics:
        metric = METRICS[name]()
        value = metric.corpus_score(list(hyps), [list(refs)]).score
        scores[name] = Score(name, value, str(metric.get_signature()))
    return scores


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether `value` beats `best`: higher for BLEU and chrF, lower for loss and TER."""
    if best is None:
        return True
    return value < best if metric in {"loss", "ter"} else value > best
