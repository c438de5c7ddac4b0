"""The checkpoints of a run: save, rank, link and delete them, and find one to resume from."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mt.artifacts.manifest import tensor_shapes, verify, write_json
from mt.artifacts.model_folder import ModelFolder
from mt.artifacts.run_folder import RunFolder, find_model
from mt.config import Config
from mt.config.ranking import ranking_key
from mt.errors import CheckpointError, RankError
from mt.files import atomic_dir, remove_folder, replace_link
from mt.runtime.shards import is_sharded, load_shards
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)

# How many bytes a checkpoint may need besides its tensors. A tokenizer has a few hundred thousand.
SPARE = 1 << 20


@dataclass(frozen=True)
class TrainingState:
    """What training changes and a checkpoint contains: weights, optimizer, counters, scores."""

    weights: dict[str, Tensor]  # the weights after the last update
    average: dict[str, Tensor] | None  # moving average of the weights, if the run has one
    optimizer: dict[str, Tensor]
    state: dict[str, Any]  # everything else, as JSON values

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors to store in training/.

        These are the optimizer's tensors. If the checkpoint's model is the average, they also
        include the raw weights.
        """
        return {**(self.weights if self.average is not None else {}), **self.optimizer}

    @property
    def is_sharded(self) -> bool:
        """Whether the tensors are sharded, so that each rank must write its own shards."""
        return any(is_sharded(tensor) for tensor in self.weights.values())

    def write(self, model: ModelFolder) -> None:
        """Write training/ of a checkpoint, except for sharded tensors."""
        model.training.mkdir()
        write_json(model.training / "state.json", self.state)
        if self.is_sharded:
            return
        if self.average is not None:
            save_file(self.weights, model.training / "weights.safetensors")
        save_file(self.optimizer, model.training / "optimizer.safetensors")

    def load(self, model: ModelFolder) -> dict[str, Any]:
        """Fill the tensors in place from a verified checkpoint, and return its `state`.

        The checkpoint may have been written by any number of ranks. Raises `CheckpointError` if
        names or shapes of tensors differ.
        """
        for folder, tensors in (
            (model.path, self.average or self.weights),
            (model.training, self.tensors),
        ):
            for path in folder.glob("*.safetensors"):
                tensor_shapes(path)  # raises an error for an oversized header
            load_shards(tensors, folder)
        return model.training_state()


class CheckpointManager:
    """Saves, ranks, deletes and finds the checkpoints of one run."""

    def __init__(
        self, run_dir: Path, keep_last: int, keep_best: int, metric: str, world: World = ALONE
    ) -> None:
        self.run = RunFolder(run_dir)
        self.folder = self.run.checkpoints
        self.keep_last, self.keep_best = keep_last, keep_best
        self.metric, self.world = metric, world
        # Only scores with this fingerprint (`Validator.fingerprint`) count; if None, all count.
        self.valid_fingerprint: str | None = None

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        return self.run.steps()

    def path(self, step: int) -> Path:
        """Return the checkpoint folder for a step."""
        return self.run.checkpoint(step).path

    def save(
        self,
        step: int,
        config: Config,
        save_tokenizer: Callable[[Path], object],
        training: TrainingState,
        provenance: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, update the links to it, and delete checkpoints that are not kept.

        All ranks must call this. `save_tokenizer` writes the tokenizer into a folder. If writing
        fails, raises `CheckpointError`, and older checkpoints do not change.
        """
        weights = self.world.gather_to_rank0(training.average or training.weights)
        try:
            with self._temporary_folder(step, training) as model:

                def write() -> None:
                    model.write(config, weights, save_tokenizer, {"step": step, **provenance})
                    training.write(model)

                self.world.broadcast_from_rank0(write)
                if training.is_sharded:
                    self.world.save_shards(training.tensors, model.training)
                self.world.broadcast_from_rank0(model.seal)
        except (OSError, SafetensorError, RankError) as error:
            raise CheckpointError(f"{self.path(step)}: could not be written: {error}") from error
        self.tidy()
        return self.path(step)

    @contextlib.contextmanager
    def _temporary_folder(self, step: int, training: TrainingState) -> Iterator[ModelFolder]:
        """Yield a temporary folder, which is the same on all ranks.

        Rank 0 creates the folder. When the block ends, rank 0 renames it to the checkpoint folder
        of `step`, or deletes it if the block fails.
        """

        def create() -> str:
            self._check_space(training)
            return str(stack.enter_context(atomic_dir(self.path(step))))

        with contextlib.ExitStack() as stack:
            yield ModelFolder(Path(self.world.broadcast_from_rank0(create)))
            self.world.broadcast_from_rank0(stack.close)

    def _check_space(self, training: TrainingState) -> None:
        parts = (training.weights, training.average or {}, training.optimizer)
        needed = SPARE + sum(tensor.nbytes for part in parts for tensor in part.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed >> 20:,} MiB, "
                f"but only {free >> 20:,} MiB are free"
            )

    def tidy(self) -> None:
        """Update the links `last` and `best`, and delete checkpoints that are not kept.

        Only rank 0 does anything. A failure is logged as a warning.
        """
        if not self.world.is_rank0:
            return
        steps, ranked = self.steps(), self.ranked()
        try:
            for name, best_first in (("last", steps[::-1]), ("best", ranked)):
                if best_first:
                    self._remove_copy(self.folder / name)
                    replace_link(self.folder / name, self.path(best_first[0]).name)
            for step in set(steps) - {*steps[-self.keep_last :], *ranked[: self.keep_best]}:
                remove_folder(self.path(step))
        except (OSError, CheckpointError) as error:
            logger.warning(
                f"{self.folder}: could not update links or delete old checkpoints: {error}"
            )

    def _remove_copy(self, link: Path) -> None:
        """Make room for a link if a folder has taken its place.

        Tools that follow links when they copy a run replace the link by a copy of a checkpoint. The
        copy is deleted if the original exists, and otherwise renamed.
        """
        if not link.is_dir() or link.is_symlink():
            return
        step = ModelFolder(link).step()
        if step is not None and self.path(step).exists():
            remove_folder(link)
        else:
            link.rename(self.folder / f"copied_{link.name}")

    def ranked(self, comparable_only: bool = True) -> list[int]:
        """Return the validated steps that have a checkpoint, with the best one first.

        Among steps with equal scores, the earlier one comes first. By default, steps are left out
        that were validated on other text or with other settings.
        """
        scored = {
            step: scores
            for step in self.steps()
            if (scores := self.scores(step, comparable_only)) and self.metric in scores
        }
        return sorted(scored, key=lambda step: ranking_key(self.metric, scored[step]), reverse=True)

    def scores(self, step: int, comparable_only: bool = True) -> dict[str, float] | None:
        """Return the validation scores of a step, from the run folder.

        They are {} if the step was not validated, and None if it was validated on other text or
        with other settings.
        """
        details = self.run.validation(step)
        if comparable_only and self.valid_fingerprint not in (None, details.get("measured")):
            return None
        return {
            name: float(details[name])
            for name in ("loss", "bleu", "chrf")
            if isinstance(details.get(name), int | float)
        }

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Add scores to the checkpoint of a step, if it was saved before they were known.

        Only rank 0 does anything. A failure is logged as a warning.
        """
        if not (self.world.is_rank0 and self.path(step).exists()):
            return
        try:
            self.run.checkpoint(step).write_scores(scores)
        except OSError as error:
            logger.warning(f"{self.path(step)}: could not write its scores: {error}")

    def newest(self) -> ModelFolder | None:
        """Return the newest undamaged checkpoint, or None if the run has no checkpoints.

        All ranks must call this. Damaged checkpoints are renamed to damaged_*, with a warning.
        Raises `CheckpointError` if all are damaged, including those that were renamed before.
        """
        path = self.world.broadcast_from_rank0(self._newest)
        return None if path is None else ModelFolder(Path(path))

    def _newest(self) -> str | None:
        for step in reversed(self.steps()):
            path = self.path(step)
            try:
                verify(path, with_training=True)
                # An earlier process may have been killed before it could update the links.
                self.tidy()
                return str(path)
            except CheckpointError as error:
                aside = self.folder / f"damaged_{path.name}"
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                logger.warning(
                    f"{error}\nmoved to {aside}; falling back to the previous checkpoint"
                )
        if damaged := len(list(self.folder.glob("damaged_*"))):
            raise CheckpointError(
                f"{self.folder}: all {damaged} checkpoints are damaged; restore one, "
                "choose another run_dir, or start again with --overwrite"
            )
        return None


def run_checkpoints(run_dir: Path, last: int | None, best: int | None) -> list[Path]:
    """Return the newest `last` or the best `best` checkpoints of a run.

    Raises `CheckpointError` if the run has fewer.
    """
    manager = CheckpointManager(run_dir, 1, 0, find_model(run_dir).config().train.metric)
    steps, count = (
        (manager.ranked(), best) if best is not None else (manager.steps()[::-1], last or 1)
    )
    if len(steps) < count:
        raise CheckpointError(
            f"{run_dir}: {count} checkpoints requested, but only {len(steps)} exist "
            "(see train.keep_last, train.keep_best)"
        )
    return [manager.path(step) for step in steps[:count]]
