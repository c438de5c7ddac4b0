"""The checkpoints of a run: saving, the links `last` and `best`, which to keep, and where to go on."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
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
from mt.config.ranking import rank
from mt.errors import CheckpointError, RankError
from mt.files import atomic_dir, remove_folder, replace_link
from mt.runtime.shards import is_sharded, load_shards
from mt.runtime.world import ALONE, World

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
        """What training/ holds: raw weights, where the model's are an average, and the optimizer's
        tensors.
        """
        return {**(self.weights if self.average is not None else {}), **self.optimizer}

    @property
    def is_sharded(self) -> bool:
        """Whether ranks have shared it out, and each must write its part."""
        return any(is_sharded(tensor) for tensor in self.weights.values())

    def write(self, model: ModelFolder) -> None:
        """Fill training/ of a checkpoint, but for tensors that ranks have shared out."""
        model.training.mkdir()
        write_json(model.training / "state.json", self.state)
        if self.is_sharded:
            return
        if self.average is not None:
            save_file(self.weights, model.training / "weights.safetensors")
        save_file(self.optimizer, model.training / "optimizer.safetensors")

    def load(self, model: ModelFolder) -> dict[str, Any]:
        """Fill the tensors from a verified checkpoint, whatever number of ranks wrote it; gives its
        state, as JSON holds it.

        Raises `CheckpointError` for tensors of other names or shapes.
        """
        places = (
            (model.path, self.average or self.weights),
            (model.training, self.tensors),
        )
        for folder, tensors in places:
            for path in sorted(folder.glob("*.safetensors")):
                tensor_shapes(path)  # bounds the header
            load_shards(tensors, folder)
        return model.training_state()


class CheckpointManager:
    """The checkpoints of one run: saving, the links `last` and `best`, which to keep, and where to
    go on.
    """

    def __init__(
        self, run_dir: Path, keep_last: int, keep_best: int, metric: str, world: World = ALONE
    ) -> None:
        self.run = RunFolder(run_dir)
        self.folder = self.run.checkpoints
        self.keep_last = keep_last
        self.keep_best = keep_best
        self.metric = metric
        self.world = world
        # What scores must have measured to count (`Validator.measured`); None: anything.
        self.measured: str | None = None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return self.run.steps()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.run.checkpoint(step).path

    def save(
        self,
        step: int,
        config: Config,
        save_tokenizer: Callable[[Path], object],
        training: TrainingState,
        provenance: Mapping[str, Any],
    ) -> Path:
        """Write a checkpoint, point the links at it, and delete those that need not be kept. All
        ranks must call this.

        `save_tokenizer` fills a folder. Raises `CheckpointError` where it cannot be written; those
        before it are as they were.
        """
        weights = self.world.gather_to_rank0(training.average or training.weights)

        def begin() -> str:
            self._check_space(training)
            model = ModelFolder(stack.enter_context(atomic_dir(self.path(step))))
            model.write(config, weights, save_tokenizer, {"step": step, **provenance})
            training.write(model)
            return str(model)

        def end() -> None:
            model.seal()
            stack.close()  # into place

        try:
            with contextlib.ExitStack() as stack:
                model = ModelFolder(Path(self.world.broadcast_from_rank0(begin)))
                if training.is_sharded:
                    self.world.save_shards(training.tensors, model.training)
                self.world.broadcast_from_rank0(end)
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
        """Point `last` at the newest and `best` at the best checkpoint, and delete those that need
        not be kept; a failure is a warning.
        """
        if not self.world.is_rank0:
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
        """Remove what stands in the place of a link after a tool that follows links has copied the
        run: a copy of a checkpoint.
        """
        if not link.is_dir() or link.is_symlink():
            return
        step = ModelFolder(link).step()
        if step is not None and self.path(step).exists():
            remove_folder(link)
        else:
            link.rename(self.folder / f"copied_{link.name}")

    def ranked(self, by_any_measure: bool = False) -> list[int]:
        """Validated steps, best first by `rank`; of equals the earlier.

        `by_any_measure` counts scores that measured something else too.
        """
        scored = {
            step: scores
            for step in self.steps()
            if (scores := self.scores(step, by_any_measure)) and self.metric in scores
        }
        return sorted(
            scored, key=lambda step: (*(-value for value in rank(self.metric, scored[step])), step)
        )

    def scores(self, step: int, by_any_measure: bool = False) -> dict[str, float] | None:
        """What validation says of a step, in the run folder; None if it has not been, or measured
        something else.

        A checkpoint may be older than its validation.
        """
        details = self.run.validation(step)
        is_comparable = by_any_measure or self.measured in (None, details.get("measured"))
        if not is_comparable:
            return None
        return {
            name: float(details[name])
            for name in ("loss", "bleu", "chrf")
            if isinstance(details.get(name), int | float)
        }

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Put scores into the checkpoint of a step, if it was saved before they were known; a
        failure is a warning.
        """
        if not (self.world.is_rank0 and self.path(step).exists()):
            return
        try:
            self.run.checkpoint(step).write_scores(scores)
        except OSError as error:
            logger.warning(
                "%s: its scores could not be written into it: %s", self.path(step), error
            )

    def newest(self) -> ModelFolder | None:
        """The newest checkpoint that is whole, None where there is none at all. All ranks must call
        this.

        A damaged one is moved aside with a warning. Raises `CheckpointError` where all are damaged,
        now or at an earlier start.
        """
        found = self.world.broadcast_from_rank0(self._newest)
        return None if found is None else ModelFolder(Path(found))

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
    """The newest `last`, or the best `best`, checkpoints of a run. Raises `CheckpointError` where
    there are fewer.
    """
    manager = CheckpointManager(run_dir, 1, 0, find_model(run_dir).config().train.metric)
    steps, wanted = (
        (manager.ranked(), best) if best is not None else (manager.steps()[::-1], last or 1)
    )
    if len(steps) < wanted:
        raise CheckpointError(
            f"{run_dir}: {wanted} checkpoints asked for, {len(steps)} are there (train.keep_last, train.keep_best)"
        )
    return [manager.path(step) for step in steps[:wanted]]
