"""A run folder: all that a run leaves.

config.yaml          the settings that it was started with
lock  status.json    that it runs, and what became of it
train.log  metrics.jsonl  tensorboard/
checkpoints/         step_N, the links `last` and `best`, damaged_step_N
valid/step_N/        translations and scores of the validation after update N
evaluations/step_N/  what `mt evaluate` found
crash/step_N/        a batch that broke training
report.html          `mt report`
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt.artifacts.manifest import read_json
from mt.artifacts.model_folder import SCORES, ModelFolder
from mt.config import HEADER, Config, config_from_text, to_yaml
from mt.config.ranking import rank
from mt.errors import CheckpointError, ConfigError
from mt.files import atomic_write, locked, remove_folder, remove_leftovers

logger = logging.getLogger(__name__)

LINKS = ("last", "best")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run at `path`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_path(self) -> Path:
        """The file of the settings."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_path(self) -> Path:
        """The file of the log."""
        return self.path / "train.log"

    @property
    def metrics_path(self) -> Path:
        """The file of the numbers, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder of the numbers for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def status_path(self) -> Path:
        """The file that schedulers read."""
        return self.path / "status.json"

    @property
    def report_path(self) -> Path:
        """The file of the report."""
        return self.path / "report.html"

    def checkpoint(self, step: int) -> ModelFolder:
        """The checkpoint of an update, whether it is there or not."""
        return ModelFolder(self.checkpoints / f"step_{step:08d}")

    def crash(self, step: int) -> ModelFolder:
        """The crash folder of an update, whether it is there or not."""
        return ModelFolder(self.path / "crash" / f"step_{step:08d}")

    def steps(self) -> list[int]:
        """Updates with a checkpoint, ascending."""
        names = [path.name.removeprefix("step_") for path in self.checkpoints.glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def all_checkpoints(self) -> list[ModelFolder]:
        """Every checkpoint, damaged ones included."""
        found = sorted(self.checkpoints.glob("*step_*"))
        return [ModelFolder(path) for path in found if not path.name.startswith(".")]

    def link_target(self, name: str) -> str | None:
        """The checkpoint that `best` or `last` names: as a link, or as what tools that copy make of
        one.

        A text file holds the name; a folder is a copy, and its provenance says of which update.
        """
        link = self.checkpoints / name
        with suppress(OSError, ValueError, CheckpointError):
            if link.is_symlink():
                return str(link.readlink())
            if link.is_dir():
                step = ModelFolder(link).step()
                original = None if step is None else self.checkpoint(step)
                return original.path.name if original is not None and original.exists else None
            if link.is_file() and link.stat().st_size < 100:
                return link.read_text(encoding="utf-8").strip()
        return None

    def lock(self) -> AbstractContextManager[None]:
        """Hold the run for this process. Raises `MTError` if another one has it."""
        return locked(self.path / "lock")

    def _settings_text(self) -> str | None:
        """What config.yaml holds; None if no run of mt wrote it."""
        if not self.config_path.exists():
            return None
        text = self.config_path.read_text(encoding="utf-8", errors="replace")
        return text if text.startswith(HEADER) else None

    def settings(self) -> Config | None:
        """The settings so far; None if there is no run of mt. Raises `ConfigError`."""
        text = self._settings_text()
        if text is None:
            return None
        return config_from_text(text, str(self.config_path), is_saved=True)

    def write_settings(self, config: Config) -> None:
        """Put the settings in their place."""
        atomic_write(self.config_path, HEADER + to_yaml(config))

    def _outputs(self) -> tuple[Path, ...]:
        """What a run leaves besides its settings, its log and its status."""
        folders = (self.path / name for name in ("valid", "evaluations", "crash"))
        files = self.metrics_path, self.tensorboard, self.report_path
        return (self.checkpoints, *files, *folders)

    def check_is_ours(self, overwrite: bool) -> None:
        """Refuse a config.yaml that no run wrote, and outputs to delete that may be no run's."""
        exists = self.config_path.exists()
        if exists and self._settings_text() is None:
            raise ConfigError(
                f"{self.config_path}: not written by a run of mt, and would be overwritten; "
                "choose another run_dir"
            )
        there = [path.name for path in self._outputs() if path.exists()]
        if overwrite and not exists and there:
            raise ConfigError(
                f"{self}: {', '.join(there)} without the config.yaml of a run of mt; "
                "--overwrite deletes nothing of yours"
            )

    def forget(self) -> None:
        """Delete what an earlier run left, and nothing else; its log stays."""
        for path in self._outputs():
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete the unfinished files of a process that was killed."""
        remove_leftovers(self.path)

    def status(self) -> dict[str, Any]:
        """What status.json says; nothing if there is none."""
        try:
            return read_json(self.status_path)
        except CheckpointError:
            return {}

    def write_status(self, **status: Any) -> None:
        """Write status.json; a failure is a warning."""
        try:
            atomic_write(self.status_path, json.dumps(status) + "\n")
        except OSError as error:
            logger.warning("%s: could not be written: %s", self.status_path, error)

    def validation(self, step: int) -> dict[str, Any]:
        """What the validation after an update found; nothing if there was none."""
        try:
            return read_json(self._validation(step) / SCORES)
        except CheckpointError:
            return {}

    def write_validation(self, step: int, hyps: Sequence[str], details: Mapping[str, Any]) -> None:
        """Keep what a validation found. Raises `OSError`."""
        folder = self._validation(step)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "hyp.txt", "".join(f"{hyp}\n" for hyp in hyps))
        atomic_write(folder / SCORES, json.dumps(details, indent=2) + "\n")

    def _validation(self, step: int) -> Path:
        return self.path / "valid" / f"step_{step:08d}"


def find_model(path: Path) -> ModelFolder:
    """The model that a user means: a model folder, or the best, else the last checkpoint of a run.

    A run folder may have been copied by a tool that follows links, drops them, or makes text files
    of them. Raises `CheckpointError`.
    """
    if ModelFolder(path).exists:
        return ModelFolder(path)
    run = RunFolder(path)
    for name in ("best", "last"):
        # Followed now: a run that continues may point the link elsewhere while the model is read.
        target = run.link_target(name)
        if target is not None and not re.fullmatch(r"step_\d+", target):
            raise CheckpointError(
                f"{run.checkpoints / name}: leads to {target}, which is no checkpoint of this run"
            )
        if target is not None and (model := ModelFolder(run.checkpoints / target)).exists:
            return model
    models = [run.checkpoint(step) for step in reversed(run.steps())]
    if there := [model for model in models if model.exists]:
        return _best_of(there)
    for name in ("best", "last"):
        if (model := ModelFolder(run.checkpoints / name)).exists:
            return model
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run folder")
    raise CheckpointError(
        f"{path}: neither a model folder (MANIFEST.json is missing) nor a run folder with "
        "checkpoints"
    )


def _best_of(models: Sequence[ModelFolder]) -> ModelFolder:
    """Of checkpoints, newest first, the best by the metric of their run; the newest if none was
    validated.
    """
    metric = models[0].config().train.metric
    scored = [
        (model, scores)
        for model in models
        if isinstance(scores := model.provenance().get("scores"), dict) and metric in scores
    ]
    best = max(reversed(scored), key=lambda each: rank(metric, each[1]), default=(models[0], {}))
    return best[0]
