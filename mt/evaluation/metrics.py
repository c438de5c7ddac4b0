"""Corpus and sentence scores, computed by sacreBLEU.

Each score has its sacreBLEU signature. Only scores with the same signature can be compared.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sacrebleu.metrics.base import Metric
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from mt.config.languages import Language, parse_language
from mt.errors import ConfigError, DataError
from mt.evaluation.legacy import legacy_bleu

TITLES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf++": "chrF++",
    "ter": "TER",
    "legacy-bleu": "legacy BLEU",
    "comet": "COMET",
    "loss": "loss",
}
DEFAULT_METRICS = ("bleu", "chrf", "ter")
RESAMPLES = 1000  # number of bootstrap resamples for the intervals, as in sacreBLEU
# Test sets with more lines get no intervals, because sacreBLEU keeps the statistics of all
# resamples in memory at once. At this size, they take a gigabyte.
MAX_RESAMPLED = 20_000
Metrics = Mapping[str, Metric]

# Each function takes the target language and the name of a tokenizer, or None for the default.
METRICS: dict[str, Callable[[Language, str | None], Metric]] = {
    "bleu": lambda lang, tokenizer: BLEU(
        tokenize=tokenizer or lang.bleu_tokenizer, trg_lang=lang.code
    ),
    "chrf": lambda lang, tokenizer: CHRF(),
    "chrf++": lambda lang, tokenizer: CHRF(word_order=2),
    "ter": lambda lang, tokenizer: TER(),
    "legacy-bleu": lambda lang, tokenizer: legacy_bleu(lang),
}


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval from bootstrap resampling (Koehn 2004).

    It covers `mean` ± `half_width`, where `mean` is the mean score of the resamples.
    """

    mean: float
    half_width: float


@dataclass(frozen=True)
class Score:
    """The value of a metric, with its signature and optionally its confidence interval."""

    name: str  # a key of `TITLES`
    value: float
    signature: str
    interval: Interval | None = None

    def __str__(self) -> str:
        width = "" if self.interval is None else f" ± {self.interval.half_width:.2f}"
        return f"{TITLES.get(self.name, self.name)} {self.value:.2f}{width}"

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON, without the interval if there is none."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def build_metrics(
    names: Sequence[str] = DEFAULT_METRICS,
    tgt_lang: str | None = None,
    tokenizer: str | None = None,
) -> Metrics:
    """Build the metrics with the given names, and load their tokenizers.

    Call this before training or translating for hours, because it raises `ConfigError` if a metric
    or tokenizer is unknown or a package is missing. `tokenizer` is a sacreBLEU tokenizer for BLEU.
    If it is None, it depends on the target language: `zh`, `ja-mecab`, `ko-mecab`, `char` for other
    languages written without spaces, and `13a` for all others.
    """
    lang = parse_language(tgt_lang)
    metrics = {}
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}; choose from {', '.join(METRICS)}")
        if name == "bleu" and tokenizer is not None and tokenizer not in BLEU.TOKENIZERS:
            raise ConfigError(
                f"unknown BLEU tokenizer {tokenizer!r}; "
                f"choose from {', '.join(sorted(BLEU.TOKENIZERS))}"
            )
        try:
            metrics[name] = METRICS[name](lang, tokenizer)
        except (
            RuntimeError,
            ImportError,
        ) as error:  # sacreBLEU raises these if a package is missing
            extra = lang.code if lang.code in {"ja", "ko"} else (tokenizer or "").split("-")[0]
            raise ConfigError(
                f"{TITLES[name]} for {lang.code or tokenizer} needs a missing package: "
                f"pip install 'mt-forge[{extra}]'"
            ) from error
    return metrics


def corpus_scores(
    hyps: Sequence[str],
    refs: Sequence[Sequence[str]],
    metrics: Metrics | None = None,
    resamples: int = 0,
) -> dict[str, Score]:
    """Return the corpus scores, keyed by metric name, as the `sacrebleu` command computes them.

    `refs` has one or more references, each with as many lines as `hyps`. `metrics` defaults to
    `DEFAULT_METRICS`. If `resamples` is set, each score has a bootstrap interval, unless there is
    just one line, or more than `MAX_RESAMPLED` lines. sacreBLEU seeds the resampling with 12345, or
    with SACREBLEU_SEED from the environment. Raises `DataError` if line counts differ, if there are
    no lines, or if all lines of a reference are empty.
    """
    check_lines(hyps, refs)
    scores = {}
    for name, metric in (build_metrics() if metrics is None else metrics).items():
        count = resamples if 1 < len(hyps) <= MAX_RESAMPLED else 0
        result = metric.corpus_score(
            list(hyps), [list(ref) for ref in refs], n_bootstrap=max(count, 1)
        )
        interval = Interval(float(result._mean), float(result._ci)) if count > 1 else None
        scores[name] = Score(name, float(result.score), str(metric.get_signature()), interval)
    return scores


def sentence_scores(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> list[float]:
    """Return the chrF score of each line.

    Unlike BLEU, chrF is meaningful for a single sentence.
    """
    check_lines(hyps, refs)
    metric = CHRF()
    return [
        metric.sentence_score(hyp, list(ref)).score for hyp, *ref in zip(hyps, *refs, strict=True)
    ]


def check_lines(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> None:
    """Raise `DataError` if line counts differ, there are no lines, or a reference is empty."""
    for ref in refs:
        if len(hyps) != len(ref):
            raise DataError(
                f"there are {len(hyps):,} translations but {len(ref):,} references; "
                "they must match line by line"
            )
    if not hyps:
        raise DataError("no lines to score")
    for number, ref in enumerate(refs, 1):
        if not any(line.strip() for line in ref):
            raise DataError(
                f"reference {number}: every line is empty"
                if len(refs) > 1
                else "every line of the reference is empty"
            )
