"""`mt reproduce`: repeat the training and evaluation of a scorecard, and compare the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt.artifacts import RunFolder
from mt.config import Config
from mt.data.prepare import prepare
from mt.errors import ConfigError
from mt.evaluation import TITLES
from mt.evaluation.evaluate import EvaluatedModel, Scoring, evaluate_model, read_tests
from mt.evaluation.scorecard import read_scorecard
from mt.runs.start import train


@dataclass(frozen=True)
class Agreement:
    """A score from the scorecard, and the same score measured again."""

    test: str
    metric: str
    expected: float
    measured: float

    @property
    def holds(self) -> bool:
        """Whether both scores are equal when rounded to two decimals."""
        return f"{self.expected:.2f}" == f"{self.measured:.2f}"

    def __str__(self) -> str:
        change = self.measured - self.expected
        verdict = "the same" if self.holds else f"not the same ({change:+.2f})"
        scores = f"{self.expected:.2f} on the card, {self.measured:.2f} now"
        return f"{self.test}: {TITLES[self.metric]} {scores}: {verdict}"


def reproduce(path: Path, run_dir: Path | None = None) -> tuple[list[Agreement], list[str]]:
    """Train and evaluate again. Returns the compared scores, and all differences in versions and
    hardware.

    The new run folder is `run_dir`, or by default the scorecard's run folder with `-reproduced`.
    Raises `ConfigError` before training if the card does not describe a checkpoint of a training
    run, or if the data has changed.
    """
    card = read_scorecard(path)
    if "step" not in card["training"]:
        raise ConfigError(
            f"{path} describes an averaged or converted model; only a checkpoint can be reproduced"
        )
    config = Config.model_validate(card["config"])
    out = run_dir or Path(f"{config.run_dir}-reproduced")
    config = config.model_copy(update={"run_dir": str(out)})
    files = [result["files"] for result in card["results"] if result["files"]]
    sources, references = zip(*files, strict=True) if files else ((), ())
    _check_data(path, card, config, sources, references)
    train(config)
    checkpoint = RunFolder(out).checkpoint(card["training"]["step"])
    options = {
        **card["decode"],
        "precision": card["precision"],
        "device": config.device,
        "threads": config.threads,
    }
    scoring = Scoring(**{**card["scoring"], "metrics": tuple(card["scoring"]["metrics"])})
    model = checkpoint.path if checkpoint.exists else out
    evaluated = evaluate_model(model, scoring, sources, references, options)
    return _agreements(card, evaluated), _circumstances(card, evaluated.card)


def _check_data(
    path: Path,
    card: Mapping[str, Any],
    config: Config,
    sources: Sequence[str],
    references: Sequence[str],
) -> None:
    tests = {test.name: test.fingerprint for test in read_tests(config.data, sources, references)}
    changed = [
        f"the test set {result['test']}"
        for result in card["results"]
        if tests.get(result["test"]) != result["text"]
    ]
    if prepare(config).data_fingerprint != card["training"]["data"]:
        changed.insert(0, "the training data")
    if changed:
        raise ConfigError(
            f"{path}: changed since the card was written: {', '.join(changed)};\n"
            "restore the files that the configuration names"
        )


def _agreements(card: Mapping[str, Any], evaluated: EvaluatedModel) -> list[Agreement]:
    measured = {result.test: result.scores for result in evaluated.results}
    return [
        Agreement(test, score["name"], score["value"], measured[test][score["name"]].value)
        for test, scores in ((result["test"], result["scores"]) for result in card["results"])
        for score in scores
        if score["name"] in measured[test]
    ]


def _circumstances(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference in versions, hardware or precision."""
    pairs = [
        (key, before[part].get(key), now[part].get(key))
        for part in ("versions", "hardware")
        for key in now[part]
    ]
    pairs.append(("compute", before["compute"], now["compute"]))
    return [f"{key}: {old} on the card, {new} now" for key, old, new in pairs if old != new]
