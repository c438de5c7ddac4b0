"""The checkpoints of a run: saving, the links `last` and `best`, which to keep, and where to go on."""

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mt.checkpoint.folder import SCORES, read_config, resolve_model, write_model_folder
from mt.checkpoint.manifest import TRAINING, read_json, seal, tensor_shapes, verify, write_json
from mt.config import Config
from mt.config.ranking import rank
from mt.data.tokenizer import Tokenizer
from mt.errors import CheckpointError, RankError
from mt.files import atomic_dir, atomic_write, remove_folder, replace_link
from mt.runtime import ALONE, World, is_sharded, load_shards

logger = logging.getLogger(__name__)

SPARE = (
    1 << 20
)  # bytes of a checkpoint besides its tensors; a tokenizer takes a few hundred thousand


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds besides the model: all that moves in training."""

    weights: dict[str, Tensor]  # as the optimizer left them
    average: dict[str, Tensor] | None  # their moving average, where one is kept
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # what JSON can hold

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What training/ holds: raw weights, where the model's are an average, and the optimizer's tensors."""
        return {**(self.weights if self.average is not None else {}), **self.optimizer}

    @property
    def is_sharded(self) -> bool:
        """Whether ranks have shared it out, and each must write its part."""
        return any(is_sharded(tensor) for tensor in self.weights.values())


class CheckpointManager:
    """The checkpoints of one run: saving, the links `last` and `best`, which to keep, and where to go on."""

    def __init__(
        self, run_dir: Path, keep_last: int, keep_best: int, metric: str, world: World = ALONE
    ) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep_last, self.keep_best, self.metric, self.world = (
            keep_last,
            keep_best,
            metric,
            world,
        )
        self.measured: str | None = (
            None  # what scores must have measured to count (`Validator.measured`); None: anything
        )

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(
            int(path.name.removeprefix("step_"))
            for path in self.folder.glob("step_*")
            if path.name[5:].isdigit()
        )

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.folder / f"step_{step:08d}"

    def save(
        self,
        step: int,
        config: Config,
        tokenizer: Tokenizer,
        training: TrainingState,
        provenance: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, point the links at it, and delete those that need not be kept. All ranks must call this.

        Raises `CheckpointError` where it cannot be written; those before it are as they were.
        """
        weights = self.world.gathered(training.average or training.weights)

        def begin() -> str:
            self._check_space(training)
            temporary = stack.enter_context(atomic_dir(self.path(step)))
            write_model_folder(temporary, config, weights, tokenizer, {"step": step, **provenance})
            (temporary / TRAINING).mkdir()
            write_json(temporary / TRAINING / "state.json", training.state)
            if not training.is_sharded:
                _write_whole(temporary / TRAINING, training)
            return str(temporary)

        def end() -> None:
            seal(temporary)
            stack.close()  # into place

        try:
            with contextlib.ExitStack() as stack:
                temporary = Path(self.world.first(begin))
                if training.is_sharded:
                    self.world.save(training.tensors, temporary / TRAINING)
                self.world.first(end)
        except (OSError, SafetensorError, RankError) as error:
            raise CheckpointError(f"{self.path(step)}: could not be written: {error}") from error
        self.tidy()
        return self.path(step)

    def _check_space(self, training: TrainingState) -> None:
        parts = (training.weights, training.average or {}, training.optimizer)
        needed = SPARE + sum(tensor.nbytes for part in parts for tensor in part.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: a checkpoint takes {needed >> 20:,} MiB and {free >> 20:,} MiB are free"
            )

    def tidy(self) -> None:
        """Point `last` at the newest and `best` at the best checkpoint, and delete those that need not be kept; a failure is a warning."""
        if not self.world.is_first:
            return
        steps, ranked = self.steps(), self.ranked()
        try:
            for name, in_order in (("last", steps[::-1]), ("best", ranked)):
                if in_order:
                    self._remove_copy(self.folder / name)
                    replace_link(self.folder / name, self.path(in_order[0]).name)
            for step in set(steps) - {*steps[-self.keep_last :], *ranked[: self.keep_best]}:
                remove_folder(self.path(step))
        except (OSError, CheckpointError) as error:
            logger.warning("%s: links and old checkpoints are as they were: %s", self.folder, error)

    def _remove_copy(self, link: Path) -> None:
        """Remove what stands in the place of a link after a tool that follows links has copied the run: a copy of a checkpoint."""
        if not link.is_dir() or link.is_symlink():
            return
        step = read_json(link / "provenance.json").get("step")
        if isinstance(step, int) and self.path(step).exists():
            remove_folder(link)
        else:
            link.rename(self.folder / f"copied_{link.name}")

    def ranked(self) -> list[int]:
        """Validated steps, best first by `rank`; of equals the earlier."""
        scored = {
            step: scores
            for step in self.steps()
            if (scores := self.scores(step)) and self.metric in scores
        }
        return sorted(
            scored, key=lambda step: (*(-value for value in rank(self.metric, scored[step])), step)
        )

    def best_by_any_measure(self) -> int | None:
        """The best kept step, whatever its validation measured; None if none is validated."""
        anything = CheckpointManager(self.folder.parent, 1, 0, self.metric)
        return next(iter(anything.ranked()), None)

    def scores(self, step: int) -> dict[str, float] | None:
        """What validation says of a step, in the run folder; None if it has not been, or measured something else.

        A checkpoint may be older than its validation.
        """
        details: dict[str, Any] = {}
        with contextlib.suppress(CheckpointError):
            details = read_json(self.folder.parent / "valid" / self.path(step).name / SCORES)
        if self.measured is not None and details.get("measured") != self.measured:
            return None
        return {
            name: float(details[name])
            for name in ("loss", "bleu", "chrf")
            if isinstance(details.get(name), int | float)
        }

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Put scores into the checkpoint of a step, if it was saved before they were known; a failure is a warning."""
        if not (self.world.is_first and self.path(step).exists()):
            return
        try:
            atomic_write(self.path(step) / SCORES, json.dumps(dict(scores), indent=2) + "\n")
        except OSError as error:
            logger.warning(
                "%s: its scores could not be written into it: %s", self.path(step), error
            )

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, None where there is none at all. All ranks must call this.

        A damaged one is moved aside with a warning. Raises `CheckpointError` where all are damaged, now or at an earlier start.
        """
        found = self.world.first(self._newest)
        return None if found is None else Path(found)

    def _newest(self) -> str | None:
        steps = self.steps()
        for step in reversed(steps):
            try:
                verify(self.path(step), with_training=True)
                self.tidy()  # a kill may have come between a save and this
                return str(self.path(step))
            except CheckpointError as error:
                aside = self.folder / f"damaged_{self.path(step).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
                logger.warning(
                    "%s\nmoved aside to %s; falling back to the checkpoint before it", error, aside
                )
        if damaged := len(list(self.folder.glob("damaged_*"))):
            raise CheckpointError(
                f"{self.folder}: all {damaged} checkpoints are damaged; restore one, choose another run_dir, or start anew with --overwrite"
            )
        return None


def run_checkpoints(run_dir: Path, last: int | None, best: int | None) -> list[Path]:
    """The newest `last`, or the best `best`, checkpoints of a run. Raises `CheckpointError` where there are fewer."""
    manager = CheckpointManager(run_dir, 1, 0, read_config(resolve_model(run_dir)).train.metric)
    steps, wanted = (
        (manager.ranked(), best) if best is not None else (manager.steps()[::-1], last or 1)
    )
    if len(steps) < wanted:
        raise CheckpointError(
            f"{run_dir}: {wanted} checkpoints asked for, {len(steps)} are there (train.keep_last, train.keep_best)"
        )
    return [manager.path(step) for step in steps[:wanted]]


def _write_whole(folder: Path, training: TrainingState) -> None:
    if training.average is not None:
        save_file(training.weights, folder / "weights.safetensors")
    save_file(training.optimizer, folder / "optimizer.safetensors")


def load_training(folder: Path, training: TrainingState) -> dict[str, Any]:
    """Fill the tensors of `training` from a verified checkpoint, whatever number of ranks wrote it; gives its state, as JSON holds it.

    Raises `CheckpointError` for tensors of other names or shapes.
    """
    for place, tensors in (
        (folder, training.average or training.weights),
        (folder / TRAINING, training.tensors),
    ):
        for path in sorted(place.glob("*.safetensors")):
            tensor_shapes(path)  # bounds the header
        load_shards(tensors, place)
    return read_json(folder / TRAINING / "state.json")
