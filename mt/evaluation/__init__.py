"""Score translations with sacreBLEU, and test whether two systems differ by more than chance."""

from mt.evaluation.metrics import (
    MAX_RESAMPLED,
    RESAMPLES,
    TITLES,
    Interval,
    Metrics,
    Score,
    build_metrics,
    corpus_scores,
    sentence_scores,
)
from mt.evaluation.significance import KINDS, Comparison, paired_tests
