"""`mt report`: what runs learned, what they score, how they differ, and every sentence, gathered
for one page.
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
from mt.evaluation.compare import PairReport, compare_translations, distinct, verdict
from mt.evaluation.diagnosis import (
    FLAGS,
    LENGTH_EDGES,
    RARITY_EDGES,
    bucketed,
    flags,
    length_ratio,
    rarity,
    word_counts,
    words,
)
from mt.evaluation.evaluate import Scoring, TestSet, kept_translations, read_tests, translate_tests
from mt.evaluation.significance import KINDS
from mt.report.attention import attention_entries
from mt.report.curves import read_curves
from mt.runtime.device import NAMES

logger = logging.getLogger(__name__)
MAX_COUNTED = 1_000_000  # training lines whose words are counted
OWN = ("run_dir", "cache_dir")  # settings that differ between any two runs


def report_data(
    runs: Sequence[Path],
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    scoring: Scoring = Scoring(),
    options: Mapping[str, Any] | None = None,
    num_maps: int = 0,
) -> dict[str, Any]:
    """What `mt.report.page.render` draws, of run or model folders; `options` are those of
    `Translator.load`.

    The attention of `num_maps` sentences of each test set is shown.

    A run without a checkpoint, or without test sets, has its curves and settings alone. Raises
    `CheckpointError` for a folder that is none, `ConfigError` or `DataError` for test sets that
    were asked for and cannot be used.
    """
    names = distinct([run.name or str(run.resolve().name) for run in runs])
    models = {
        name: folder
        for name, run in zip(names, runs, strict=True)
        if (folder := _model(run)) is not None
    }
    configs = [_config(run) for run in runs]
    tests = _tests(configs[0], sources, references) if models else []
    described = []
    if tests:
        systems = {name: _system(model, tests, options or {}) for name, model in models.items()}
        counts = _training_words(configs[0])
        metrics = scoring.build(configs[0])
        described = [
            _test(i, test, systems, metrics, scoring, counts, num_maps)
            for i, test in enumerate(tests)
        ]
    return {
        "title": " and ".join(names),
        "generated": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "runs": [_run(name, run, models.get(name)) for name, run in zip(names, runs, strict=True)],
        "config_differences": _differences(configs),
        "tests": described,
    }


def _model(run: Path) -> ModelFolder | None:
    try:
        return find_model(run)
    except CheckpointError:
        if RunFolder(run).settings() is None:
            raise
        logger.warning("%s: no checkpoint yet: its translations are left out", run)
        return None


def _config(run: Path) -> Config:
    return RunFolder(run).settings() or find_model(run).config()


def _tests(config: Config, sources: Sequence[str], references: Sequence[str]) -> list[TestSet]:
    try:
        return read_tests(config.data, sources, references)
    except (ConfigError, DataError, OSError) as error:
        if sources or references:
            raise
        logger.warning("no test sets in this report: %s", error)
        return []


def _training_words(config: Config) -> Counter[str] | None:
    """How often training saw each target word; None where its text is not at hand."""
    pairs = itertools.chain.from_iterable(
        open_corpus(corpus, config.data, CorpusStats()) for corpus in config.data.train
    )
    try:
        return word_counts(pair.tgt for pair in itertools.islice(pairs, MAX_COUNTED))
    except (DataError, OSError) as error:
        logger.warning("no scores by rarity of words: %s", error)
        return None


def _run(name: str, run: Path, model: ModelFolder | None) -> dict[str, Any]:
    provenance = {"folder": str(run)}
    if model is not None:
        about = model.provenance()
        provenance |= {"checkpoint": model.path.name, "parameters": f"{model.num_parameters():,}"}
        provenance |= {key: _text(about[key]) for key in about if key != "scores"}
    steps = about.get("step") if model is not None else None
    return {
        "name": name, "path": str(run), "state": RunFolder(run).status().get("state", ""), "curves": read_curves(run), "best_step": steps,
        "provenance": provenance,
    }  # fmt: skip


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(configs: Sequence[Config]) -> list[dict[str, Any]]:
    flat = [flatten(config) for config in configs]
    keys = sorted({key for each in flat for key in each if key not in OWN})
    rows = [
        {"key": key, "values": [None if each.get(key) is None else str(each[key]) for each in flat]}
        for key in keys
    ]
    return [row for row in rows if len(set(row["values"])) > 1]


@dataclass(frozen=True)
class _System:
    """An opened model on all test sets."""

    translator: Translator
    hyps: list[list[str]]
    gains: list[list[float]]  # from the source, by test set and line


def _system(folder: ModelFolder, tests: Sequence[TestSet], options: Mapping[str, Any]) -> _System:
    """Open a model, once, and let it translate and read; its workers end with that."""
    kept = kept_translations(folder, tests, options)
    with Translator.load(folder.path, **options) as translator:
        hyps = translate_tests(translator, tests, kept)
        gains = [
            source_gain(translator, test.src, lines)
            for test, lines in zip(tests, hyps, strict=True)
        ]
    return _System(translator, hyps, gains)


def source_gain(translator: Translator, src: Sequence[str], tgt: Sequence[str]) -> list[float]:
    """By how much a token of each target is likelier, in the mean of natural logarithms, with its
    source than with another line's.

    The other line is the one half the text away; 0 where both are the same. What a model makes up
    gains little, whatever its attention looks like.
    """
    others = [*src[len(src) // 2 :], *src[: len(src) // 2]]
    own, other = (translator.likelihood(zip(lines, tgt, strict=True)) for lines in (src, others))
    return [
        (a.log_prob - b.log_prob) / len(a.log_probs)
        for a, b in zip(list(own), list(other), strict=True)
    ]


def _test(
    index: int,
    test: TestSet,
    opened: Mapping[str, _System],
    metrics: Metrics,
    scoring: Scoring,
    counts: Mapping[str, int] | None,
    num_maps: int,
) -> dict[str, Any]:
    hyps = {name: system.hyps[index] for name, system in opened.items()}
    gains = [system.gains[index] for system in opened.values()]
    translators = [system.translator for system in opened.values()]
    ref = test.refs[0]
    found = [
        [flags(*line) for line in zip(test.src, ref, lines, of_system, strict=True)]
        for lines, of_system in zip(hyps.values(), gains, strict=True)
    ]
    systems = [
        {
            "name": name,
            "scores": [
                _score(score)
                for score in corpus_scores(lines, test.refs, metrics, scoring.resamples).values()
            ],
            "diagnosis": [
                {"label": label, "flag": flag, "count": sum(flag in each for each in of_system)}
                for flag, label in FLAGS.items()
            ],
            "length_ratio": length_ratio(lines, ref),
        }
        for (name, lines), of_system in zip(hyps.items(), found, strict=True)
    ]
    sentences = {
        "src": test.src, "ref": ref, "hyps": [list(lines) for lines in hyps.values()], "flags": found,
        "scores": [[round(score, 1) for score in sentence_scores(lines, test.refs)] for lines in hyps.values()],
    }  # fmt: skip
    return {
        "name": test.name,
        "num_sentences": len(test.src),
        "systems": systems,
        "comparisons": _comparisons(test, hyps, metrics),
        "buckets": _buckets(test, list(hyps.values()), metrics, counts),
        "sentences": sentences,
        "precision": NAMES[translators[0].compute.dtype],
        "attention": list(attention_entries(translators, test.src, sentences, num_maps)),
    }


def _score(score: Score) -> dict[str, Any]:
    interval = None
    if score.interval is not None:
        interval = [
            score.interval.mean - score.interval.half_width,
            score.interval.mean + score.interval.half_width,
        ]
    return {
        "name": TITLES[score.name],
        "value": score.value,
        "interval": interval,
        "signature": score.signature,
    }


def _comparisons(
    test: TestSet, hyps: Mapping[str, Sequence[str]], metrics: Metrics
) -> list[dict[str, Any]]:
    """Every two systems by every metric and test."""
    if len(test.src) < 2:
        return []
    names = list(hyps)
    return [
        _comparison(pair, names)
        for a, b in itertools.combinations(names, 2)
        for pair in compare_translations(test, {a: hyps[a], b: hyps[b]}, metrics)
    ]


def _comparison(pair: PairReport, names: list[str]) -> dict[str, Any]:
    by_metric = [
        list(group) for _, group in itertools.groupby(pair.comparisons, key=lambda c: c.score.name)
    ]
    rows = [
        {
            "metric": TITLES[first.score.name],
            "difference": first.difference,
            "p_values": {KINDS[c.kind]: c.p_value for c in group},
        }
        for group in by_metric
        for first in group[:1]
    ]
    systems = {"a": names.index(pair.baseline), "b": names.index(pair.system)}
    return {
        **systems,
        "wins": pair.wins,
        "losses": pair.losses,
        "ties": pair.ties,
        "verdict": verdict(pair),
        "metrics": rows,
    }


def _buckets(
    test: TestSet, hyps: Sequence[Sequence[str]], metrics: Metrics, counts: Mapping[str, int] | None
) -> list[dict[str, Any]]:
    lengths = [len(words(line)) for line in test.src]
    kinds: dict[str, tuple[list[int], tuple[int, ...]]] = {
        "Source length in words": (lengths, LENGTH_EDGES)
    }
    if counts is not None:
        kinds["Times that training saw the rarest word of the reference"] = (
            rarity(test.refs[0], counts),
            RARITY_EDGES,
        )
    metric = TITLES[next(iter(metrics))]
    found = []
    for title, (keys, edges) in kinds.items():
        buckets = bucketed(keys, edges, hyps, test.refs, metrics)
        values = [[bucket.scores[i] for bucket in buckets] for i in range(len(hyps))]
        found.append({
            "title": title, "labels": [bucket.label for bucket in buckets], "counts": [bucket.count for bucket in buckets],
            "metric": metric, "values": values,
        })  # fmt: skip
    return found
