"""Scores of translations: sacreBLEU's metrics, each with the signature that makes a score
comparable.
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
RESAMPLES = 1000  # of a bootstrap: sacreBLEU's own default
# lines; sacreBLEU holds the statistics of all resamples at once, a gigabyte at this size
MAX_RESAMPLED = 20_000
Metrics = Mapping[str, Metric]

METRICS: dict[
    str, Callable[[Language, str | None], Metric]
] = {  # of the target's language and a tokenizer
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
    """A 95 % confidence interval by bootstrap resampling (Koehn 2004): `mean` of the resamples, and
    half its width.
    """

    mean: float
    half_width: float


@dataclass(frozen=True)
class Score:
    """One number, what it measures and how."""

    name: str
    value: float
    signature: str
    interval: Interval | None = None

    def __str__(self) -> str:
        width = "" if self.interval is None else f" ± {self.interval.half_width:.2f}"
        return f"{TITLES.get(self.name, self.name)} {self.value:.2f}{width}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def build_metrics(
    names: Sequence[str] = DEFAULT_METRICS,
    tgt_lang: str | None = None,
    tokenizer: str | None = None,
) -> Metrics:
    """Metrics by name, their tokenizers loaded; to be built before hours of work whose end they are
    to score.

    BLEU takes `tokenizer`, one of sacreBLEU's, or the one for the target language: `zh`,
    `ja-mecab`, `ko-mecab`, `char` for other languages written without spaces, else `13a`. Raises
    `ConfigError` for an unknown metric or tokenizer, and where a package is missing.
    """
    lang = parse_language(tgt_lang)
    metrics = {}
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"metric {name!r} is none of {', '.join(METRICS)}")
        if name == "bleu" and tokenizer is not None and tokenizer not in BLEU.TOKENIZERS:
            raise ConfigError(
                f"tokenizer {tokenizer!r} is none of sacreBLEU's: {', '.join(sorted(BLEU.TOKENIZERS))}"
            )
        try:
            metrics[name] = METRICS[name](lang, tokenizer)
        except (
            RuntimeError,
            ImportError,
        ) as error:  # sacreBLEU's way to say that a tokenizer's package is missing
            extra = lang.code if lang.code in {"ja", "ko"} else (tokenizer or "").split("-")[0]
            what = f"{TITLES[name]} of {lang.code or tokenizer}"
            raise ConfigError(
                f"{what}: a package is missing; pip install 'mt-forge[{extra}]'"
            ) from error
    return metrics


def corpus_scores(
    hyps: Sequence[str],
    refs: Sequence[Sequence[str]],
    metrics: Metrics | None = None,
    resamples: int = 0,
) -> dict[str, Score]:
    """Corpus scores by metric name, as the `sacrebleu` command computes them; the default is
    `DEFAULT_METRICS`.

    `refs` holds one or more references, each of as many lines as `hyps`. With `resamples` each
    score has its interval, from sacreBLEU's seed (12345, or SACREBLEU_SEED), unless there is but
    one line, or more than `MAX_RESAMPLED`. Raises `DataError` where the numbers of lines differ,
    there are none, or all lines of a reference are empty.
    """
    check_lines(hyps, refs)
    scores = {}
    for name, metric in (build_metrics() if metrics is None else metrics).items():
        count = resamples if 1 < len(hyps) <= MAX_RESAMPLED else 0
        found = metric.corpus_score(
            list(hyps), [list(ref) for ref in refs], n_bootstrap=max(count, 1)
        )
        interval = Interval(float(found._mean), float(found._ci)) if count > 1 else None
        scores[name] = Score(name, float(found.score), str(metric.get_signature()), interval)
    return scores


def sentence_scores(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> list[float]:
    """chrF of each line by itself: unlike BLEU it says something about a single sentence."""
    check_lines(hyps, refs)
    metric = CHRF()
    return [
        metric.sentence_score(hyp, list(ref)).score for hyp, *ref in zip(hyps, *refs, strict=True)
    ]


def check_lines(hyps: Sequence[str], refs: Sequence[Sequence[str]]) -> None:
    """Raise `DataError` where translations and references are not line by line, or there is nothing
    to compare with.
    """
    for ref in refs:
        if len(hyps) != len(ref):
            raise DataError(
                f"{len(hyps):,} translations but {len(ref):,} references; they must match line by line"
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
