"""Which training pairs are left out: named filters over a pair's text and over its subwords, each
counting what it drops.
"""

from collections import Counter
from collections.abc import Sequence

from mt.config import FilterConfig
from mt.data.sources import SentencePair


class FilterStats(Counter[str]):
    """How many pairs each filter dropped (by its name), and how many were kept (`kept`)."""

    def __str__(self) -> str:
        dropped = ", ".join(
            f"{name} {count:,}" for name, count in sorted(self.items()) if name != "kept"
        )
        return f"{self['kept']:,} pairs kept" + (
            f"; dropped by {dropped}" if dropped else "; none dropped"
        )


def text_filter(pair: SentencePair, config: FilterConfig) -> str | None:
    """The name of the filter that drops this pair before it is tokenized, or None."""
    if any(len(side.encode()) > config.max_bytes for side in pair):
        return "max_bytes"
    return None


def token_filter(src: Sequence[int], tgt: Sequence[int], config: FilterConfig) -> str | None:
    """The name of the filter that drops this tokenized pair (ends of sentence not in it), or None."""
    if not src or not tgt:
        return "no_subwords"  # nothing but characters that the tokenizer's normalization removes
    longer, shorter = max(len(src), len(tgt)), min(len(src), len(tgt))
    if longer + 1 > config.max_len:
        return "max_len"
    if config.max_ratio is not None and longer > config.max_ratio * shorter:
        return "max_ratio"
    return None
