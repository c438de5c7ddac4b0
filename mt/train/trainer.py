"""The training loop: updates, validation, checkpoints, and an end to continue from bit for bit.

All that moves stands in `state_dict`.
"""

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mt.artifacts import CheckpointManager, ModelFolder, TrainingState
from mt.config import Config, ResolvedRun
from mt.data.order import Update
from mt.data.prepare import Prepared
from mt.decode.loading import load_weights
from mt.errors import CheckpointError, DivergedError, Interrupted, RankError
from mt.log import MetricLogger
from mt.runtime.device import NAMES, Compute
from mt.runtime.world import ALONE, World
from mt.train.crash import write_crash
from mt.train.gradients import PendingStats, UpdateStats
from mt.train.optimizer import optimizer_tensors, prepare_optimizer
from mt.train.progress import LossWindow, TrainProgress
from mt.train.stopping import (
    EXIT_CODES,
    REMEDIES,
    Abandoned,
    DivergenceWatch,
    ScoreWatch,
    SignalStop,
    limit_reached,
)
from mt.train.updates import Updater
from mt.train.validation import Validator

logger = logging.getLogger(__name__)

STATE_FORMAT = 2  # of state.json; 1 did not say it
FAILED_SAVES = 3  # in a row end a run: more would only make a loss larger


class Trainer(Updater):
    """One run: its updates, what validation says of them, and how far they are."""

    def __init__(
        self, resolved: ResolvedRun, prepared: Prepared, compute: Compute,
        checkpoints: CheckpointManager, world: World = ALONE,
    ) -> None:  # fmt: skip
        super().__init__(resolved, prepared, compute, world)
        config, train = resolved.config, resolved.config.train
        self.checkpoints = checkpoints
        self.validator = (
            Validator(config, prepared.tokenizer, compute, self.run, world)
            if config.data.valid
            else None
        )
        if self.validator is not None:
            checkpoints.valid_fingerprint = self.validator.fingerprint
        self.stop = SignalStop(world)
        self.watch = DivergenceWatch(train)
        self.known_bad_updates = 0  # of these, as the host has read them
        self.failed_saves = 0
        self._unread: list[PendingStats] = []
        self.score_watch = ScoreWatch(train.metric)
        self.window = LossWindow()
        self._is_comparable = (
            True  # whether the scores of earlier validations measured what those to come do
        )
        self.scores: dict[str, float] = {}  # of the last validation, if it was at this step
        self._began = time.perf_counter()  # less what earlier starts of this run took

    def seconds(self) -> float:
        """Time that this run has taken, its earlier starts included."""
        return time.perf_counter() - self._began

    def train(self) -> str:
        """Train until a limit is reached and return it. Raises `Interrupted`, `DivergedError`."""
        config = self.config.train
        metrics = (
            MetricLogger(self.run.metrics_path, self.run.tensorboard, self.step)
            if self.world.is_rank0
            else None
        )
        self.progress = TrainProgress(
            config, metrics, self.step, self.seconds, NAMES[self.compute.dtype], self.window
        )
        updates = self.loader.updates()
        with self.stop.installed(), contextlib.closing(self.progress):
            try:
                if not self._is_comparable:
                    self.score_kept_best()
                if (
                    self.step and self._due(config.valid_every) and not self.scores
                ):  # a signal had abandoned it
                    self.validate()
                while (limit := self.limit_reached()) is None and self.stop.signal is None:
                    with self.progress.timed("data"):
                        update = next(updates)
                    stats = self.train_step(update)
                    # Before anything waits for the GPU: hosts can tell who is missing.
                    self.stop.share_signal()
                    self.report(stats)
                    if self._due(config.save_every):
                        self.save()  # before validation, which may need more memory
                    if self._due(config.valid_every) and self.validate():
                        self.save()
            finally:
                updates.close()  # type: ignore[attr-defined]
            self._finish()
        assert limit is not None
        return limit

    def train_step(self, update: Update) -> PendingStats:
        """One update; the scores of the one before are no longer those of the model."""
        self.scores = {}
        return super().train_step(update)

    def report(self, *stats: PendingStats, late: int | None = None) -> None:
        """Show the stats of updates, on a GPU those before the newest, so that it has work meanwhile."""
        self._unread += stats
        late = int(self.compute.device.type == "cuda") if late is None else late
        while len(self._unread) > late:
            pending = self._unread.pop(0)
            read = self._read(pending)
            if read is not None:
                self.progress.add(pending.step, self.loader.position.epoch, read)
                self.watch.add(pending.step, read.loss)

    def _read(self, pending: PendingStats) -> UpdateStats | None:
        """The numbers of an update; None if it was left out. Raises `DivergedError` for one too many."""
        try:
            return pending.read(self.world.gpu_patience, self.known_bad_updates)
        except DivergedError as error:
            self.known_bad_updates += 1
            weights = self.world.gather_to_rank0(self.weights())
            where = ""
            if self.world.is_rank0:
                batches = self.loader.whole(pending.update)
                where = write_crash(
                    self.run, self.config, self.prepared.tokenizer, weights, batches, pending
                )
            allowed = self.config.train.max_bad_updates
            if self.known_bad_updates > allowed:
                remedy = f"{REMEDIES}; or leave it out with train.max_bad_updates={self.known_bad_updates}"
                raise DivergedError(f"{error}. {remedy}\n{where}") from error
            logger.warning(
                "%s; left out (%d of train.max_bad_updates: %d)\n%s",
                error,
                self.known_bad_updates,
                allowed,
                where,
            )
            return None

    def validate(self) -> bool:
        """Score the model, or its average; returns whether it is the best. A signal abandons this."""
        self.report(late=0)
        if self.validator is None:
            return False
        try:
            with self.progress.timed("valid"), self.model_to_score() as model:
                scores = self.validator.validate(model, self.step, self._shared)
        except (Abandoned, RankError) as error:
            if isinstance(error, RankError) and error.kind != Abandoned.__name__:
                raise
            self.stop.share_signal()
            return False
        self.scores = scores
        improved = self.score_watch.add(scores)
        self.progress.report_validation(self.step, scores, improved, self.score_watch.bad_validations)
        self.checkpoints.add_scores(self.step, scores)
        self.checkpoints.tidy()
        return improved

    def score_kept_best(self) -> None:
        """Validate the kept best checkpoint again: its scores measured something else."""
        assert self.validator is not None
        kept = self.world.broadcast_from_rank0(
            lambda: next(iter(self.checkpoints.ranked(comparable_only=False)), None)
        )
        if kept is None:
            return
        logger.info(
            "validation has changed (text, search or metric): scoring update %d, the best so far, again",
            kept,
        )
        model, best = self._build(), self.run.checkpoint(kept)
        load_weights(model, best.weights(), best.weights_path)
        try:
            with self.progress.timed("valid"):
                scores = self.validator.validate(model.to(self.compute.device), kept, self._shared)
        except Abandoned:
            return
        self._is_comparable = True
        self.score_watch.add(scores)
        self.scores = scores if kept == self.step else self.scores
        self.progress.report_validation(kept, scores, improved=True, bad_validations=0)
        self.checkpoints.tidy()

    def _shared(
        self, work: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]
    ) -> list[Any]:
        """`World.shared`; a signal abandons this rank's part, and with it all."""

        def own_part(part: Sequence[Any]) -> Sequence[Any]:
            with self.stop.interruptible():
                return work(part)

        return self.world.map_sharded(own_part, items)

    def limit_reached(self) -> str | None:
        """The limit that ends this run, or None."""
        return limit_reached(
            self.config.train,
            self.step,
            self.loader.position.epoch,
            self.score_watch.bad_validations,
        )

    def is_validated(self) -> bool:
        """Whether this step's scores are written down, or there is nothing to validate."""
        return self.validator is None or self.world.broadcast_from_rank0(
            lambda: self.step in self.checkpoints.ranked()
        )

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint of this step, if there is none yet. One that cannot be written is an
        error only if it is the `last`, or the third in a row."""
        self.report(late=0)
        if self.world.broadcast_from_rank0(lambda: self.step in self.checkpoints.steps()):
            return
        try:
            with self.progress.timed("save"):
                self.checkpoints.save(
                    self.step,
                    self.config,
                    self.prepared.tokenizer.save,
                    self.training_state(),
                    self._provenance(),
                )
            self.failed_saves = 0
        except CheckpointError as error:
            self.failed_saves += 1
            kept = self.checkpoints.steps()
            going_on = (
                f"the last checkpoint is that of update {kept[-1]}"
                if kept
                else "there is no checkpoint yet"
            )
            if last or self.failed_saves == FAILED_SAVES:
                raise CheckpointError(
                    f"{error}\n{going_on}; make room and give the same command again"
                ) from error
            logger.warning(
                "%s\ntraining goes on; %s (%d of %d failed saves)",
                error,
                going_on,
                self.failed_saves,
                FAILED_SAVES,
            )

    def training_state(self) -> TrainingState:
        """All that moves, as a checkpoint holds it."""
        average = self.average.weights if self.average is not None else None
        optimizer = optimizer_tensors(self.optimizer, self.model) | self.loss_scale.state_dict()
        return TrainingState(self.weights(), average, optimizer, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Position and scores, as JSON holds them."""
        return {
            "format": STATE_FORMAT, "step": self.step, "loader": self.loader.state_dict(), "score_watch": self.score_watch.state_dict(),
            "metric": self.config.train.metric, "measured": self.checkpoints.valid_fingerprint,
            "window": self.window.state_dict(), "bad_updates": self.known_bad_updates,
            "scores": self.scores, "divergence": self.watch.state_dict(), "seconds": self.seconds(),
            "max_tokens": self.config.batching.max_tokens,
            "precision": NAMES[self.compute.dtype], "threads": self.config.threads,
            "data": self.prepared.data_fingerprint, "tokenizer": self.prepared.tokenizer.hash,
        }  # fmt: skip

    def load(self, folder: ModelFolder) -> None:
        """Go on from a checkpoint, whatever number of ranks wrote it. Raises `CheckpointError`."""
        prepare_optimizer(self.optimizer)
        state = self.training_state().load(folder)
        self.loader.load_state_dict(state["loader"])
        self.watch.load_state_dict(state["divergence"])
        self.step, self.scores = state["step"], state["scores"]
        self._began = time.perf_counter() - state["seconds"]
        self.known_bad_updates = state.get("bad_updates", 0)
        self.bad_updates.fill_(self.known_bad_updates)
        if "window" in state:
            self.window.load_state_dict(state["window"])
        self._load_scores(state)

    def _load_scores(self, state: dict[str, Any]) -> None:
        """Take over what validation has found so far, if it measured what it does now."""
        if self.validator is None:
            return
        self._is_comparable = (
            state.get("measured") == self.validator.fingerprint
            and state.get("metric") == self.config.train.metric
        )
        if not self._is_comparable:
            self.scores = {}
            return
        self.score_watch.load_state_dict(state["score_watch"])
        found = (
            None
            if self.scores
            else self.world.broadcast_from_rank0(lambda: self.checkpoints.scores(self.step))
        )
        if found:  # it was validated after it was saved
            self.scores = found
            self.score_watch.add(found)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 and self.stop.signal is None

    def _finish(self) -> None:
        """Validate what was not, save, and raise where a signal ended the loop."""
        if self.stop.signal is None and not self.scores:
            self.validate()
        if self.step:
            self.save(last=True)
        if self.stop.signal is not None:
            message = f"{self.stop.signal.name}: stopped after update {self.step} and saved; the same command goes on"
            raise Interrupted(message, EXIT_CODES[self.stop.signal])

    def _provenance(self) -> dict[str, Any]:
        return {
            "scores": self.scores, "seconds": round(self.seconds(), 1), "compute": str(self.compute),
            "data": self.prepared.data_fingerprint, "corpora": [corpus.label for corpus in self.config.data.train],
            "lengths": asdict(self.prepared.train.lengths_seen),
        }  # fmt: skip


@contextlib.contextmanager
def trial(config: Config, prepared: Prepared, compute: Compute) -> Iterator[Trainer]:
    """A trainer to measure with: it validates nothing, and its folder is gone afterwards."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"valid": []})})
    with tempfile.TemporaryDirectory() as folder:
        resolved = ResolvedRun(Path(folder), config)
        checkpoints = CheckpointManager(resolved.folder, 1, 1, config.train.metric)
        yield Trainer(resolved, prepared, compute, checkpoints)
