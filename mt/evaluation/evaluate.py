"""`mt evaluate`: translate test sets with a model and score the translations.

The translations and a scorecard are saved next to the model. `mt compare` and `mt report` reuse the
translations; `mt reproduce` needs the scorecard.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mt.artifacts import ModelFolder, find_model
from mt.config import Config, CorpusConfig, DataConfig, DecodeConfig
from mt.data.sources import read_parallel, read_text
from mt.decode.translator import Translator, search_options
from mt.errors import CheckpointError, ConfigError, DataError
from mt.evaluation import RESAMPLES, Metrics, Score, build_metrics, corpus_scores
from mt.evaluation.comet import CometCommand
from mt.evaluation.scorecard import read_scorecard, scorecard
from mt.files import atomic_write, fingerprint
from mt.runtime.device import PRECISION_NAMES, set_up_compute
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)
SCORECARD = "scorecard.json"


@dataclass(frozen=True)
class TestSet:
    """Source lines and one or more references."""

    __test__ = False  # tell pytest that this is not a test class

    name: str
    src: list[str]
    refs: list[list[str]]  # one list of lines per reference
    files: tuple[str, str] | None = None  # (--src, --ref) from the command line

    @property
    def fingerprint(self) -> str:
        """A hash of the source and the references."""
        return fingerprint(self.src, self.refs)


@dataclass(frozen=True)
class Scoring:
    """Which metrics to compute, and how."""

    metrics: tuple[str, ...] = ("bleu", "chrf", "ter")
    tokenizer: str | None = None
    tgt_lang: str | None = None
    resamples: int = (
        RESAMPLES  # number of bootstrap resamples for the intervals; 0 means no intervals
    )
    comet: CometCommand | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for the scorecard.

        The COMET command is left out because it only works on this machine.
        """
        fields = {key: value for key, value in vars(self).items() if key != "comet"}
        return {**fields, "metrics": list(self.metrics)}

    def build(self, config: Config | None = None) -> Metrics:
        """Build the metrics. If `tgt_lang` is not set, use the target language of `config`."""
        tgt_lang = self.tgt_lang or (config.data.tgt_lang if config else None)
        return build_metrics(self.metrics, tgt_lang, self.tokenizer)


@dataclass(frozen=True)
class Result:
    """A model's translations of one test set, and their scores."""

    test: str
    hyps: list[str]
    scores: dict[str, Score]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serializable fields, without the translations."""
        scores = [score.as_dict() for score in self.scores.values()]
        return {
            "test": self.test,
            "sentences": len(self.hyps),
            "scores": scores,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class EvaluatedModel:
    """The results of a model on all test sets, and its scorecard."""

    folder: ModelFolder
    results: list[Result]
    card: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The translations of a test set, their scores, and the seconds that translating took."""

    hyps: list[str]
    scores: dict[str, Score]
    seconds: float


def evaluate(
    translate: Callable[[Sequence[str]], list[str]],
    src: Sequence[str],
    refs: Sequence[Sequence[str]],
    metrics: Metrics | None = None,
    resamples: int = 0,
) -> Evaluation:
    """Translate `src` with `translate` and score the result against the references.

    `refs`, `metrics` and `resamples` are explained in `corpus_scores`.
    """
    start = time.perf_counter()
    hyps = translate(src)
    seconds = time.perf_counter() - start
    return Evaluation(hyps, corpus_scores(hyps, refs, metrics, resamples), seconds)


def read_tests(
    data: DataConfig, sources: Sequence[str] = (), references: Sequence[str] = ()
) -> list[TestSet]:
    """Read the test sets.

    They are `sources` with the corresponding `references`, or `data.test` if both are empty. An
    entry of `references` may consist of several file names, separated by commas. Raises `DataError`
    if a file cannot be read or the line counts differ, and `ConfigError` if there is no test set.
    """
    if len(sources) != len(references):
        raise ConfigError(
            f"there are {len(sources)} --src but {len(references)} --ref; "
            "give one --ref per --src (several reference files: a,b)"
        )
    tests = [_read_files(src, ref, data) for src, ref in zip(sources, references, strict=True)]
    if not sources:
        tests = [
            TestSet(corpus.label, src, [ref])
            for corpus in data.test
            for src, ref in [read_parallel([corpus], data)]
        ]
    if not tests:
        raise ConfigError("no test set: data.test is not configured; give --src and --ref")
    return tests


def _read_files(src: str, ref: str, data: DataConfig) -> TestSet:
    first, *others = split_references(ref)
    lines, refs = read_parallel([CorpusConfig(src=src, tgt=first)], data)
    return TestSet(src, lines, [refs, *map(read_text, others)], (src, ref))


def split_references(text: str) -> list[str]:
    """Split `a,b` into file names, unless an existing file has a comma in its name."""
    parts = text.split(",")
    names: list[str] = []
    while parts:
        # Take the longest prefix that is a file, or else the part before the first comma.
        lengths = range(len(parts), 0, -1)
        length = next((n for n in lengths if Path(",".join(parts[:n])).exists()), 1)
        names.append(",".join(parts[:length]))
        parts = parts[length:]
    return names


def evaluate_model(
    model: Path,
    scoring: Scoring,
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> EvaluatedModel:
    """Evaluate `model` on the test sets, and save translations and scorecard next to the model.

    `options` are options of `Translator.load`. All ranks of `world` translate a part of the text.
    Rank 0 computes COMET and writes the files.
    """
    folder = ModelFolder(Path(world.broadcast_from_rank0(lambda: str(find_model(model)))))
    config = folder.config()
    # This comes before translating, so that a missing file or package is reported right away.
    tests = read_tests(config.data, sources, references)
    metrics = scoring.build(config)
    results = []
    with Translator.load(folder.path, **(options or {})) as translator:
        translate = partial(world.map_sharded, translator.translate)
        for test in tests:
            evaluation = evaluate(translate, test.src, test.refs, metrics, scoring.resamples)
            scores = evaluation.scores
            if scoring.comet and world.is_rank0:
                scores = {**scores, **scoring.comet.score(test.src, evaluation.hyps, test.refs[0])}
            results.append(Result(test.name, evaluation.hyps, scores, evaluation.seconds))
    names = list(translation_file_names([test.name for test in tests]))
    entries = [
        {**result.as_dict(), "files": test.files, "text": test.fingerprint, "file": name}
        for test, result, name in zip(tests, results, names, strict=True)
    ]
    card = scorecard(folder, config, translator, scoring.as_dict(), entries)
    if world.is_rank0:
        _save(folder.evaluations, card, dict(zip(names, results, strict=True)))
    return EvaluatedModel(folder, results, card)


def cached_translations(
    model: ModelFolder, tests: Sequence[TestSet], options: Mapping[str, Any]
) -> list[list[str] | None]:
    """Return the translations saved by the model's last evaluation, with one entry per test set.

    An entry is None if there is none, or if text, weights, precision or search options were not the
    same.
    """
    decode = search_options(
        model.config().decode,
        {key: options[key] for key in options.keys() & DecodeConfig.model_fields.keys()},
    )
    precision = precision_of(options)
    return [_cached(model, decode, precision, test) for test in tests]


def translate_tests(
    translator: Translator, tests: Sequence[TestSet], cached: Sequence[list[str] | None]
) -> list[list[str]]:
    """Return `cached`, but translate the test sets whose entry is None."""
    return [
        translator.translate(test.src) if hyps is None else hyps
        for test, hyps in zip(tests, cached, strict=True)
    ]


def precision_of(options: Mapping[str, Any]) -> str:
    """Return the precision in which a `Translator` loaded with these options translates."""
    compute = set_up_compute(
        options.get("device", "auto"), options.get("precision", "auto"), options.get("threads")
    )
    return PRECISION_NAMES[compute.dtype]


def _cached(
    model: ModelFolder, decode: DecodeConfig, precision: str, test: TestSet
) -> list[str] | None:
    # Translations do not depend on the batch size.
    wanted = {**decode.model_dump(), "batch_size": None}, precision, model.weights_hash()
    try:
        card = read_scorecard(model.evaluations / SCORECARD)
        saved = {**card["decode"], "batch_size": None}, card["precision"], card["weights"]
        [name] = [
            result["file"] for result in card["results"] if result["text"] == test.fingerprint
        ]
        hyps = read_text(model.evaluations / Path(name).name)
    except (CheckpointError, DataError, OSError, ValueError, KeyError, TypeError):
        return None
    return hyps if saved == wanted and len(hyps) == len(test.src) else None


def _save(folder: Path, card: Mapping[str, Any], results: Mapping[str, Result]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            atomic_write(folder / name, "".join(f"{hyp}\n" for hyp in result.hyps))
        atomic_write(folder / SCORECARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        logger.warning("%s: cannot save the evaluation: %s", folder, error)


def translation_file_names(tests: Sequence[str]) -> Iterator[str]:
    """Yield a unique file name for the translations of each test set."""
    taken: set[str] = set()
    for test in tests:
        stem = re.sub(r"[^\w.-]+", "_", Path(test).name)[:100].strip(".") or "test"
        suffixes = ("" if number == 1 else f"-{number}" for number in range(1, 10_000))
        name = next(name for suffix in suffixes if (name := f"{stem}{suffix}.hyp") not in taken)
        taken.add(name)
        yield name
