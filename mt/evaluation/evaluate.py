"""`mt evaluate`: models on test sets, what they scored and what they wrote, kept beside them for
comparisons and reports.
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
from mt.runtime.device import NAMES, set_up_compute
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)
SCORECARD = "scorecard.json"


@dataclass(frozen=True)
class TestSet:
    """Source lines and one or more references."""

    __test__ = False  # no test of pytest's

    name: str
    src: list[str]
    refs: list[list[str]]
    files: tuple[str, str] | None = None  # as given on the command line

    @property
    def fingerprint(self) -> str:
        """Of its text."""
        return fingerprint(self.src, self.refs)


@dataclass(frozen=True)
class Scoring:
    """What is to be measured."""

    metrics: tuple[str, ...] = ("bleu", "chrf", "ter")
    tokenizer: str | None = None
    tgt_lang: str | None = None
    resamples: int = RESAMPLES
    comet: CometCommand | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the score card, without COMET, whose command is of one machine."""
        about = {key: value for key, value in vars(self).items() if key != "comet"}
        return {**about, "metrics": list(self.metrics)}

    def build(self, config: Config | None = None) -> Metrics:
        """The metrics for a target language: its own, or that of `config`."""
        return build_metrics(
            self.metrics,
            self.tgt_lang or (config.data.tgt_lang if config else None),
            self.tokenizer,
        )


@dataclass(frozen=True)
class Result:
    """A model's translations of one test set, and their scores."""

    test: str
    hyps: list[str]
    scores: dict[str, Score]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the translations."""
        scores = [score.as_dict() for score in self.scores.values()]
        return {
            "test": self.test,
            "sentences": len(self.hyps),
            "scores": scores,
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True)
class EvaluatedModel:
    """A model on all its test sets."""

    folder: ModelFolder
    results: list[Result]
    card: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """Translations of a test set, their scores, and how long translating took."""

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
    """`translate` the lines of `src` and score against one or more references, line by line: see
    `corpus_scores`.
    """
    began = time.perf_counter()
    hyps = translate(src)
    seconds = time.perf_counter() - began
    return Evaluation(hyps, corpus_scores(hyps, refs, metrics, resamples), seconds)


def read_tests(
    data: DataConfig, sources: Sequence[str] = (), references: Sequence[str] = ()
) -> list[TestSet]:
    """Test sets from files, each source with a reference or several with commas between; without
    any, those of the configuration.

    Raises `DataError` for files that cannot be read or do not match, `ConfigError` where there is
    none.
    """
    if len(sources) != len(references):
        raise ConfigError(
            f"{len(sources)} --src but {len(references)} --ref; each source needs its own (several references: a,b)"
        )
    tests = [_read_files(src, ref, data) for src, ref in zip(sources, references, strict=True)]
    if not sources:
        tests = [
            TestSet(corpus.label, src, [ref])
            for corpus in data.test
            for src, ref in [read_parallel([corpus], data)]
        ]
    if not tests:
        raise ConfigError("no test set: the configuration names no data.test; give --src and --ref")
    return tests


def _read_files(src: str, ref: str, data: DataConfig) -> TestSet:
    first, *others = split_references(ref)
    lines, refs = read_parallel([CorpusConfig(src=src, tgt=first)], data)
    return TestSet(src, lines, [refs, *map(read_text, others)], (src, ref))


def split_references(text: str) -> list[str]:
    """The files of `a,b`, or of a single name that has a comma in it."""
    names = text.split(",")
    found: list[str] = []
    while names:
        ends = range(len(names), 0, -1)
        end = next((end for end in ends if Path(",".join(names[:end])).exists()), 1)
        found.append(",".join(names[:end]))
        names = names[end:]
    return found


def evaluate_model(
    model: Path,
    scoring: Scoring,
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    world: World = ALONE,
) -> EvaluatedModel:
    """Translate and score, and write translations and score card to `ModelFolder.evaluations`;
    `options` are those of `Translator.load`.

    Ranks share the lines; what they found, the first writes down.
    """
    folder = ModelFolder(Path(world.broadcast_from_rank0(lambda: str(find_model(model)))))
    config = folder.config()
    tests = read_tests(
        config.data, sources, references
    )  # a missing file, or package, shows before minutes of translating
    metrics = scoring.build(config)
    results = []
    with Translator.load(folder.path, **(options or {})) as translator:
        translate = partial(world.map_sharded, translator.translate)
        for test in tests:
            found = evaluate(translate, test.src, test.refs, metrics, scoring.resamples)
            scores = found.scores
            if scoring.comet and world.is_rank0:
                scores = {**scores, **scoring.comet.score(test.src, found.hyps, test.refs[0])}
            results.append(Result(test.name, found.hyps, scores, found.seconds))
    names = list(file_names([test.name for test in tests]))
    described = [
        {**result.as_dict(), "files": test.files, "text": test.fingerprint, "file": name}
        for test, result, name in zip(tests, results, names, strict=True)
    ]
    card = scorecard(folder, config, translator, scoring.as_dict(), described)
    if world.is_rank0:
        _keep(folder.evaluations, card, dict(zip(names, results, strict=True)))
    return EvaluatedModel(folder, results, card)


def kept_translations(
    folder: ModelFolder, tests: Sequence[TestSet], options: Mapping[str, Any]
) -> list[list[str] | None]:
    """A model's translations of each test set by its last evaluation, where they are of this search
    and text.
    """
    decode = search_options(
        folder.config().decode,
        {key: options[key] for key in options.keys() & DecodeConfig.model_fields.keys()},
    )
    precision = precision_of(options)
    return [_kept(folder, decode, precision, test) for test in tests]


def translate_tests(
    translator: Translator, tests: Sequence[TestSet], kept: Sequence[list[str] | None]
) -> list[list[str]]:
    """Translations of each test set: those that were kept, else new ones."""
    return [
        translator.translate(test.src) if hyps is None else hyps
        for test, hyps in zip(tests, kept, strict=True)
    ]


def precision_of(options: Mapping[str, Any]) -> str:
    """The precision that these options of `Translator.load` translate in."""
    compute = set_up_compute(
        options.get("device", "auto"), options.get("precision", "auto"), options.get("threads")
    )
    return NAMES[compute.dtype]


def _kept(
    model: ModelFolder, decode: DecodeConfig, precision: str, test: TestSet
) -> list[str] | None:
    folder = model.evaluations
    expected = {**decode.model_dump(), "batch_size": None}, precision, model.weights_hash()
    try:
        card = read_scorecard(folder / SCORECARD)
        same = (
            {**card["decode"], "batch_size": None},
            card["precision"],
            card["weights"],
        ) == expected
        [name] = [
            result["file"] for result in card["results"] if result["text"] == test.fingerprint
        ]
        hyps = read_text(folder / Path(name).name)
    except (CheckpointError, DataError, OSError, ValueError, KeyError, TypeError):
        return None
    return hyps if same and len(hyps) == len(test.src) else None


def _keep(folder: Path, card: Mapping[str, Any], results: Mapping[str, Result]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, result in results.items():
            atomic_write(folder / name, "".join(f"{hyp}\n" for hyp in result.hyps))
        atomic_write(folder / SCORECARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        logger.warning("%s: the evaluation could not be kept there: %s", folder, error)


def file_names(tests: Sequence[str]) -> Iterator[str]:
    """A name of a file for the translations of each test set."""
    taken: set[str] = set()
    for test in tests:
        stem = re.sub(r"[^\w.-]+", "_", Path(test).name)[:100].strip(".") or "test"
        name = next(
            name
            for i in range(1, 10_000)
            if (name := f"{stem}{'' if i == 1 else f'-{i}'}.hyp") not in taken
        )
        taken.add(name)
        yield name
