"""`mt reproduce`: train and evaluate again what a score card says, and hold the scores against it."""

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
    """One score of the card and the same measured again."""

    test: str
    metric: str
    expected: float
    found: float

    @property
    def holds(self) -> bool:
        """To the last digit that is printed."""
        return f"{self.expected:.2f}" == f"{self.found:.2f}"

    def __str__(self) -> str:
        verdict = "the same" if self.holds else f"not the same ({self.found - self.expected:+.2f})"
        return f"{self.test}: {TITLES[self.metric]} {self.expected:.2f} on the card, {self.found:.2f} now: {verdict}"


def reproduce(path: Path, run_dir: Path | None = None) -> tuple[list[Agreement], list[str]]:
    """Train in a folder of its own (default: the card's run folder with `-reproduced`), evaluate,
    and compare.

    Gives the scores side by side, and what else is not as it was (versions, hardware). Raises
    `ConfigError` where the card is not of one training run, or the text is no longer the same,
    before anything is trained.
    """
    card = read_scorecard(path)
    if "step" not in card["training"]:
        raise ConfigError(
            f"{path}: of an averaged or converted model; a card of a checkpoint can be reproduced"
        )
    config = Config.model_validate(card["config"])
    out = run_dir or Path(f"{config.run_dir}-reproduced")
    config = config.model_copy(update={"run_dir": str(out)})
    sources, references = (
        zip(*given, strict=True)
        if (given := [r["files"] for r in card["results"] if r["files"]])
        else ((), ())
    )
    _check_text(path, card, config, sources, references)
    train(config)
    checkpoint = RunFolder(out).checkpoint(card["training"]["step"])
    options = {
        **card["decode"],
        "precision": card["precision"],
        "device": config.device,
        "threads": config.threads,
    }
    scoring = Scoring(**{**card["scoring"], "metrics": tuple(card["scoring"]["metrics"])})
    found = evaluate_model(
        checkpoint.path if checkpoint.exists else out, scoring, sources, references, options
    )
    return _agreements(card, found), _circumstances(card, found.card)


def _check_text(
    path: Path,
    card: Mapping[str, Any],
    config: Config,
    sources: Sequence[str],
    references: Sequence[str],
) -> None:
    texts = {test.name: test.fingerprint for test in read_tests(config.data, sources, references)}
    wrong = [
        f"the test set {result['test']}"
        for result in card["results"]
        if texts.get(result["test"]) != result["text"]
    ]
    if prepare(config).data_fingerprint != card["training"]["data"]:
        wrong.insert(0, "the training text")
    if wrong:
        raise ConfigError(
            f"{path}: {', '.join(wrong)} is no longer what it was; put the text back where the configuration looks for it"
        )


def _agreements(card: Mapping[str, Any], found: EvaluatedModel) -> list[Agreement]:
    now = {result.test: result.scores for result in found.results}
    return [
        Agreement(
            result["test"], score["name"], score["value"], now[result["test"]][score["name"]].value
        )
        for result in card["results"]
        for score in result["scores"]
        if score["name"] in now[result["test"]]
    ]


def _circumstances(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Versions and hardware that differ."""
    pairs = [
        (key, before[part].get(key), now[part].get(key))
        for part in ("versions", "hardware")
        for key in now[part]
    ]
    pairs.append(("compute", before["compute"], now["compute"]))
    return [f"{key}: {old} on the card, {new} now" for key, old, new in pairs if old != new]
