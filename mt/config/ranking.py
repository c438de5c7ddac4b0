"""Which way each metric is better, and what orders validations by one."""

from collections.abc import Mapping

LOWER_IS_BETTER = {"loss", "ter"}


def is_better(metric: str, value: float, best: float) -> bool:
    """Whether `value` beats `best`: higher for BLEU and chrF, lower for loss and TER."""
    return value < best if metric in LOWER_IS_BETTER else value > best


def rank(metric: str, scores: Mapping[str, float]) -> tuple[float, ...]:
    """What orders validations by `metric`, the best highest: ties are broken by chrF, then by the
    loss.
    """
    names = dict.fromkeys((metric, "chrf", "loss"))
    return tuple(
        -scores[name] if name in LOWER_IS_BETTER else scores[name]
        for name in names
        if name in scores
    )
