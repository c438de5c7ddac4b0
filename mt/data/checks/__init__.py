"""Filters that drop training pairs because of their text or, after tokenization, their subwords.

Dropped pairs are counted under the name of the filter: `max_bytes`, `max_len` and `max_ratio` are
options, and `no_subwords` is always on.
"""

from collections import Counter
from collections.abc import Sequence

from mt.config import FilterConfig
from mt.data.sources import SentencePair


class FilterStats(Counter[str]):
    """How many pairs each filter has dropped, keyed by filter name, and how many were `kept`."""

    def __str__(self) -> str:
        dropped = ", ".join(
            f"{name} {count:,}" for name, count in sorted(self.items()) if name != "kept"
        )
        return f"{self['kept']:,} pairs kept" + (
            f"; dropped by {dropped}" if dropped else "; none dropped"
        )


def text_filter(pair: SentencePair, config: FilterConfig) -> str | None:
    """Return which filter drops a pair because of its text, or None to keep the pair."""
    if any(len(side.encode()) > config.max_bytes for side in pair):
        return "max_bytes"
    return None


def token_filter(src: Sequence[int], tgt: Sequence[int], config: FilterConfig) -> str | None:
    """Return which filter drops a pair because of its subwords, or None to keep the pair.

    `src` and `tgt` are ids without the end-of-sentence token.
    """
    if not src or not tgt:
        # All characters of a side were removed by the tokenizer's normalization.
        return "no_subwords"
    longer, shorter = max(len(src), len(tgt)), min(len(src), len(tgt))
    if longer + 1 > config.max_len:
        return "max_len"
    if config.max_ratio is not None and longer > config.max_ratio * shorter:
        return "max_ratio"
    return None
