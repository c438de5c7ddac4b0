"""A run folder: everything that a training run writes.

config.yaml          the settings of the latest start
lock                 locked while a process trains
status.json          whether the run is in progress, and how it ended
train.log            the log
metrics.jsonl        losses, speeds and scores; the same numbers are in tensorboard/
checkpoints/         step_N, the links `last` and `best`, and damaged_step_N
valid/step_N/        translations and scores of the validation after update N
evaluations/step_N/  results of `mt evaluate`
crash/step_N/        a batch that stopped training, and the weights at that time
report.html          the output of `mt report`
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
from mt.config.ranking import ranking_key
from mt.errors import CheckpointError, ConfigError
from mt.files import atomic_write, locked, remove_folder, remove_leftovers

logger = logging.getLogger(__name__)

LINKS = ("last", "best")


@dataclass(frozen=True)
class RunFolder:
    """A run folder, which is at `path`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_path(self) -> Path:
        """The file with the settings."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder with the checkpoints."""
        return self.path / "checkpoints"

    @property
    def log_path(self) -> Path:
        """The log file."""
        return self.path / "train.log"

    @property
    def metrics_path(self) -> Path:
        """The file with losses, speeds and scores, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder with the files for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def status_path(self) -> Path:
        """The file with the state of the run, for schedulers and other programs."""
        return self.path / "status.json"

    @property
    def report_path(self) -> Path:
        """The path of the HTML report."""
        return self.path / "report.html"

    def checkpoint(self, step: int) -> ModelFolder:
        """Return the checkpoint folder of an update, which need not exist."""
        return ModelFolder(self.checkpoints / f"step_{step:08d}")

    def crash(self, step: int) -> ModelFolder:
        """Return the crash folder of an update, which need not exist."""
        return ModelFolder(self.path / "crash" / f"step_{step:08d}")

    def steps(self) -> list[int]:
        """Return the updates that have a checkpoint, in ascending order."""
        names = [path.name.removeprefix("step_") for path in self.checkpoints.glob("step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def all_checkpoints(self) -> list[ModelFolder]:
        """Return every checkpoint, including damaged ones."""
        paths = sorted(self.checkpoints.glob("*step_*"))
        return [ModelFolder(path) for path in paths if not path.name.startswith(".")]

    def link_target(self, name: str) -> str | None:
        """Return the name of the checkpoint that the link `best` or `last` points to, or None.

        Some tools replace links when they copy a run. So this may also be a text file with the
        checkpoint's name, or a copy of the checkpoint, whose provenance has the update.
        """
        link = self.checkpoints / name
        with suppress(OSError, ValueError, CheckpointError):
            if link.is_symlink():
                return str(link.readlink())
            if link.is_dir():
                step = ModelFolder(link).step()
                if step is None or not self.checkpoint(step).exists:
                    return None
                return self.checkpoint(step).path.name
            if link.is_file() and link.stat().st_size < 100:
                return link.read_text(encoding="utf-8").strip()
        return None

    def lock(self) -> AbstractContextManager[None]:
        """Lock the folder for this process. Raises `MTError` if another process has locked it."""
        return locked(self.path / "lock")

    def _settings_text(self) -> str | None:
        """Return the text of config.yaml, or None if it does not exist or mt did not write it."""
        if not self.config_path.exists():
            return None
        text = self.config_path.read_text(encoding="utf-8", errors="replace")
        return text if text.startswith(HEADER) else None

    def settings(self) -> Config | None:
        """Read the settings, or return None if the folder has no config.yaml written by mt.

        Raises `ConfigError`.
        """
        text = self._settings_text()
        if text is None:
            return None
        return config_from_text(text, str(self.config_path), is_saved=True)

    def write_settings(self, config: Config) -> None:
        """Write config.yaml."""
        atomic_write(self.config_path, HEADER + to_yaml(config))

    def _outputs(self) -> tuple[Path, ...]:
        """The files and folders that a run writes, except for settings, log and status."""
        folders = (self.path / name for name in ("valid", "evaluations", "crash"))
        files = self.metrics_path, self.tensorboard, self.report_path
        return (self.checkpoints, *files, *folders)

    def check_written_by_mt(self, overwrite: bool) -> None:
        """Raise `ConfigError` if this run would replace files that mt may not have written.

        These are a config.yaml without mt's header and, if `overwrite` is set, outputs without a
        config.yaml.
        """
        exists = self.config_path.exists()
        if exists and self._settings_text() is None:
            raise ConfigError(
                f"{self.config_path} would be overwritten, but was not written by mt; "
                "choose another run_dir"
            )
        names = [path.name for path in self._outputs() if path.exists()]
        if overwrite and not exists and names:
            raise ConfigError(
                f"{self} has {', '.join(names)}, but no config.yaml of a run; "
                "--overwrite deletes only what mt has written"
            )

    def delete_outputs(self) -> None:
        """Delete what earlier starts of the run wrote, except settings, log and status."""
        for path in self._outputs():
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete unfinished files that killed processes have left."""
        remove_leftovers(self.path)

    def status(self) -> dict[str, Any]:
        """Read status.json, or return {} if that fails."""
        try:
            return read_json(self.status_path)
        except CheckpointError:
            return {}

    def write_status(self, **status: Any) -> None:
        """Write status.json. A failure is logged as a warning."""
        try:
            atomic_write(self.status_path, json.dumps(status) + "\n")
        except OSError as error:
            logger.warning(f"{self.status_path}: could not be written: {error}")

    def validation(self, step: int) -> dict[str, Any]:
        """Read the scores and details of an update's validation, or return {}."""
        try:
            return read_json(self._validation(step) / SCORES)
        except CheckpointError:
            return {}

    def write_validation(self, step: int, hyps: Sequence[str], details: Mapping[str, Any]) -> None:
        """Write the translations, scores and details of a validation. Raises `OSError`."""
        folder = self._validation(step)
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "hyp.txt", "".join(f"{hyp}\n" for hyp in hyps))
        atomic_write(folder / SCORES, json.dumps(details, indent=2) + "\n")

    def _validation(self, step: int) -> Path:
        return self.path / "valid" / f"step_{step:08d}"


def find_model(path: Path) -> ModelFolder:
    """Return the model folder at a path, or the best checkpoint of the run folder at a path.

    If no best checkpoint is known, the last one is returned. This also works for a copy of a run
    folder in which the links `best` and `last` are missing, or have become folders or text files.
    Raises `CheckpointError` if `path` is neither a model folder nor a run folder with checkpoints.
    """
    if ModelFolder(path).exists:
        return ModelFolder(path)
    run = RunFolder(path)
    for name in ("best", "last"):
        # Resolve the link once, because training may change it while the model is being read.
        target = run.link_target(name)
        if target is not None and not re.fullmatch(r"step_\d+", target):
            raise CheckpointError(
                f"{run.checkpoints / name}: points to {target}, "
                "which is not a checkpoint of this run"
            )
        if target is not None and (model := ModelFolder(run.checkpoints / target)).exists:
            return model
    models = [run.checkpoint(step) for step in reversed(run.steps())]
    if existing := [model for model in models if model.exists]:
        return _best_of(existing)
    for name in ("best", "last"):
        if (model := ModelFolder(run.checkpoints / name)).exists:
            return model
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run folder")
    raise CheckpointError(
        f"{path} is neither a model folder (no MANIFEST.json) nor a run folder with checkpoints"
    )


def _best_of(models: Sequence[ModelFolder]) -> ModelFolder:
    """Return the best of a run's checkpoints according to the run's metric.

    The checkpoints are given newest first. If none has scores, the newest is returned.
    """
    metric = models[0].config().train.metric
    scored = [
        (model, scores)
        for model in models
        if isinstance(scores := model.provenance().get("scores"), dict) and metric in scores
    ]
    return max(
        reversed(scored), key=lambda item: ranking_key(metric, item[1]), default=(models[0], {})
    )[0]
