"""Which scores are better, and how validations are ranked."""

from collections.abc import Mapping

LOWER_IS_BETTER = {"loss", "ter"}


def is_better(metric: str, value: float, best: float) -> bool:
    """Whether `value` is better than `best`. For the loss and TER, lower is better."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def ranking_key(metric: str, scores: Mapping[str, float]) -> tuple[float, ...]:
    """Return a sort key for validations; a better validation has a larger key.

    Validations are compared by `metric`, then by chrF, then by the loss.
    """
    names = dict.fromkeys((metric, "chrf", "loss"))
    return tuple(
        -scores[name] if name in LOWER_IS_BETTER else scores[name]
        for name in names
        if name in scores
    )
