"""Scores of translations by sacreBLEU, and whether a difference between two of them is more than
chance.
"""

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
