"""`mt report`: collect the data that the report page shows.

These are training curves, scores, significance tests, differences in configuration, and every
sentence with its translations.
"""

import datetime
import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt import __version__
from mt.artifacts import ModelFolder, RunFolder, find_model
from mt.config import Config, flatten
from mt.data.sources import CorpusStats, open_corpus
from mt.decode.translator import Translator
from mt.errors import CheckpointError, ConfigError, DataError
from mt.evaluation import TITLES, Metrics, Score, corpus_scores, sentence_scores
from mt.evaluation.compare import PairReport, compare_translations, unique_names, verdict
from mt.evaluation.diagnosis import (
    FLAGS,
    LENGTH_EDGES,
    RARITY_EDGES,
    flags,
    length_ratio,
    rarest_word_counts,
    score_buckets,
    word_counts,
    words,
)
from mt.evaluation.evaluate import (
    Scoring,
    TestSet,
    cached_translations,
    read_tests,
    translate_tests,
)
from mt.evaluation.significance import KINDS
from mt.report.attention import attention_entries
from mt.report.curves import read_curves
from mt.runtime.device import PRECISION_NAMES

logger = logging.getLogger(__name__)
MAX_COUNTED = 1_000_000  # number of training lines in which words are counted
ALWAYS_DIFFERENT = ("run_dir", "cache_dir")  # settings that are not listed as differences


def report_data(
    runs: Sequence[Path],
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    scoring: Scoring = Scoring(),
    options: Mapping[str, Any] | None = None,
    num_maps: int = 0,
) -> dict[str, Any]:
    """Collect what `mt.report.page.render` shows about run or model folders.

    The test sets are `sources` with `references`, or those of the first run's configuration.
    `options` are options of `Translator.load`. `num_maps` is the number of sentences per test set
    for which attention maps are included. A run without a checkpoint contributes only its curves
    and settings. Raises `CheckpointError` if a folder is neither a run nor a model, and
    `ConfigError` or `DataError` if `sources` and `references` cannot be used.
    """
    names = unique_names([run.name or str(run.resolve().name) for run in runs])
    models = {
        name: folder
        for name, run in zip(names, runs, strict=True)
        if (folder := _model(run)) is not None
    }
    configs = [_config(run) for run in runs]
    tests = _tests(configs[0], sources, references) if models else []
    sections = []
    if tests:
        systems = {name: _system(model, tests, options or {}) for name, model in models.items()}
        counts = _training_words(configs[0])
        metrics = scoring.build(configs[0])
        sections = [
            _test(i, test, systems, metrics, scoring, counts, num_maps)
            for i, test in enumerate(tests)
        ]
    return {
        "title": " and ".join(names),
        "generated": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "runs": [_run(name, run, models.get(name)) for name, run in zip(names, runs, strict=True)],
        "config_differences": _differences(configs),
        "tests": sections,
    }


def _model(run: Path) -> ModelFolder | None:
    try:
        return find_model(run)
    except CheckpointError:
        if RunFolder(run).settings() is None:
            raise
        logger.warning(
            "%s: there is no checkpoint yet, so the report has no translations of this run", run
        )
        return None


def _config(run: Path) -> Config:
    return RunFolder(run).settings() or find_model(run).config()


def _tests(config: Config, sources: Sequence[str], references: Sequence[str]) -> list[TestSet]:
    try:
        return read_tests(config.data, sources, references)
    except (ConfigError, DataError, OSError) as error:
        if sources or references:
            raise
        logger.warning("the report has no test sets: %s", error)
        return []


def _training_words(config: Config) -> Counter[str] | None:
    """Count the target words in the training text. Returns None if the text cannot be read."""
    pairs = itertools.chain.from_iterable(
        open_corpus(corpus, config.data, CorpusStats()) for corpus in config.data.train
    )
    try:
        return word_counts(pair.tgt for pair in itertools.islice(pairs, MAX_COUNTED))
    except (DataError, OSError) as error:
        logger.warning("the report has no scores for rare and frequent words: %s", error)
        return None


def _run(name: str, run: Path, model: ModelFolder | None) -> dict[str, Any]:
    provenance, best_step = {"folder": str(run)}, None
    if model is not None:
        recorded = model.provenance()
        provenance |= {"checkpoint": model.path.name, "parameters": f"{model.num_parameters():,}"}
        provenance |= {key: _text(recorded[key]) for key in recorded if key != "scores"}
        best_step = recorded.get("step")
    return {
        "name": name,
        "path": str(run),
        "state": RunFolder(run).status().get("state", ""),
        "curves": read_curves(run),
        "best_step": best_step,
        "provenance": provenance,
    }


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(configs: Sequence[Config]) -> list[dict[str, Any]]:
    settings = [flatten(config) for config in configs]
    rows = []
    for key in sorted(set().union(*settings) - {*ALWAYS_DIFFERENT}):
        values = [None if config.get(key) is None else str(config[key]) for config in settings]
        if len(set(values)) > 1:
            rows.append({"key": key, "values": values})
    return rows


@dataclass(frozen=True)
class _System:
    """A loaded model, with its translations of the test sets."""

    translator: Translator
    hyps: list[list[str]]  # [test set][line]
    gains: list[list[float]]  # [test set][line], see `source_gain`


def _system(folder: ModelFolder, tests: Sequence[TestSet], options: Mapping[str, Any]) -> _System:
    """Load a model, translate the test sets, and end its worker processes."""
    cached = cached_translations(folder, tests, options)
    with Translator.load(folder.path, **options) as translator:
        hyps = translate_tests(translator, tests, cached)
        gains = [
            source_gain(translator, test.src, lines)
            for test, lines in zip(tests, hyps, strict=True)
        ]
    return _System(translator, hyps, gains)


def source_gain(translator: Translator, src: Sequence[str], tgt: Sequence[str]) -> list[float]:
    """Measure how much each target depends on its source, in nats per token.

    The gain is the mean log-probability of the target's tokens given its own source, minus their
    mean log-probability given an unrelated source, which is the line half the text away. For
    hallucinations, the gain is small. If both sources are the same, it is 0.
    """
    unrelated = [*src[len(src) // 2 :], *src[: len(src) // 2]]
    with_own, with_unrelated = (
        list(translator.likelihood(zip(lines, tgt, strict=True))) for lines in (src, unrelated)
    )
    return [
        (own.log_prob - other.log_prob) / len(own.log_probs)
        for own, other in zip(with_own, with_unrelated, strict=True)
    ]


def _test(
    index: int,
    test: TestSet,
    systems: Mapping[str, _System],
    metrics: Metrics,
    scoring: Scoring,
    counts: Mapping[str, int] | None,
    num_maps: int,
) -> dict[str, Any]:
    """Collect everything about a test set. `index` is its index in the lists of `systems`."""
    hyps = {name: system.hyps[index] for name, system in systems.items()}
    translators = [system.translator for system in systems.values()]
    ref = test.refs[0]
    flagged = [
        [
            flags(*line)
            for line in zip(test.src, ref, system.hyps[index], system.gains[index], strict=True)
        ]
        for system in systems.values()
    ]
    sentences = {
        "src": test.src,
        "ref": ref,
        "hyps": [list(lines) for lines in hyps.values()],
        "flags": flagged,
        "scores": [
            [round(score, 1) for score in sentence_scores(lines, test.refs)]
            for lines in hyps.values()
        ],
    }
    return {
        "name": test.name,
        "num_sentences": len(test.src),
        "systems": [
            _scored_system(name, lines, test, flags_by_line, metrics, scoring.resamples)
            for (name, lines), flags_by_line in zip(hyps.items(), flagged, strict=True)
        ],
        "comparisons": _comparisons(test, hyps, metrics),
        "buckets": _buckets(test, list(hyps.values()), metrics, counts),
        "sentences": sentences,
        "precision": PRECISION_NAMES[translators[0].compute.dtype],
        "attention": list(attention_entries(translators, test.src, sentences, num_maps)),
    }


def _scored_system(
    name: str,
    hyps: Sequence[str],
    test: TestSet,
    flags_by_line: Sequence[Sequence[str]],
    metrics: Metrics,
    resamples: int,
) -> dict[str, Any]:
    scores = corpus_scores(hyps, test.refs, metrics, resamples)
    return {
        "name": name,
        "scores": [_score(score) for score in scores.values()],
        "diagnosis": [
            {"label": label, "flag": flag, "count": sum(flag in line for line in flags_by_line)}
            for flag, label in FLAGS.items()
        ],
        "length_ratio": length_ratio(hyps, test.refs[0]),
    }


def _score(score: Score) -> dict[str, Any]:
    interval = score.interval
    return {
        "name": TITLES[score.name],
        "value": score.value,
        "interval": interval
        and [interval.mean - interval.half_width, interval.mean + interval.half_width],
        "signature": score.signature,
    }


def _comparisons(
    test: TestSet, hyps: Mapping[str, Sequence[str]], metrics: Metrics
) -> list[dict[str, Any]]:
    """Compare every pair of systems."""
    if len(test.src) < 2:
        return []
    names = list(hyps)
    return [
        _comparison(pair, names)
        for a, b in itertools.combinations(names, 2)
        for pair in compare_translations(test, {a: hyps[a], b: hyps[b]}, metrics)
    ]


def _comparison(pair: PairReport, names: list[str]) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}  # keyed by metric
    for c in pair.comparisons:
        metric = TITLES[c.score.name]
        row = {"metric": metric, "difference": c.difference, "p_values": {}}
        rows.setdefault(metric, row)["p_values"][KINDS[c.kind]] = c.p_value
    return {
        "a": names.index(pair.baseline),
        "b": names.index(pair.system),
        "wins": pair.wins,
        "losses": pair.losses,
        "ties": pair.ties,
        "verdict": verdict(pair),
        "metrics": list(rows.values()),
    }


def _buckets(
    test: TestSet, hyps: Sequence[Sequence[str]], metrics: Metrics, counts: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    lengths = [len(words(line)) for line in test.src]
    groupings: dict[str, tuple[list[int], Sequence[int]]] = {
        "Source length in words": (lengths, LENGTH_EDGES)
    }
    if counts is not None:
        title = "How often the rarest word in the reference occurs in training"
        groupings[title] = rarest_word_counts(test.refs[0], counts), RARITY_EDGES
    charts = []
    for title, (keys, edges) in groupings.items():
        buckets = score_buckets(keys, edges, hyps, test.refs, metrics)
        charts.append(
            {
                "title": title,
                "labels": [bucket.label for bucket in buckets],
                "counts": [bucket.count for bucket in buckets],
                "metric": TITLES[next(iter(metrics))],
                "values": [[bucket.scores[i] for bucket in buckets] for i in range(len(hyps))],
            }
        )
    return charts
