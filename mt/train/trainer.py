"""The training loop: updates, reports, validation and checkpoints.

A stopped run can be resumed bit for bit, because a checkpoint contains all state that training
changes (`training_state`).
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
from mt.errors import CheckpointError, Interrupted, RankError
from mt.log import MetricLogger
from mt.runtime.device import PRECISION_NAMES, Compute
from mt.runtime.world import ALONE, World
from mt.train.gradients import PendingStats
from mt.train.optimizer import optimizer_tensors, prepare_optimizer
from mt.train.progress import LossWindow, TrainProgress
from mt.train.stopping import (
    EXIT_CODES,
    Abandoned,
    DivergenceWatch,
    ScoreWatch,
    SignalStop,
    limit_reached,
)
from mt.train.updates import Updater
from mt.train.validation import Validator

logger = logging.getLogger(__name__)

STATE_FORMAT = 2  # format of state.json; files of format 1 have no format number
FAILED_SAVES = 3  # end the run after this many failed saves in a row, to lose no more work


class Trainer(Updater):
    """A training run: the training loop with its validations and checkpoints."""

    def __init__(
        self,
        resolved: ResolvedRun,
        prepared: Prepared,
        compute: Compute,
        checkpoints: CheckpointManager,
        world: World = ALONE,
    ) -> None:
        super().__init__(resolved, prepared, compute, world)
        config, train = resolved.config, resolved.config.train
        self.checkpoints = checkpoints
        self.validator: Validator | None = None
        if config.data.valid:
            self.validator = Validator(config, prepared.tokenizer, compute, self.run, world)
            checkpoints.valid_fingerprint = self.validator.fingerprint
        self.stop = SignalStop(world)
        self.watch = DivergenceWatch(train)
        self.failed_saves = 0  # number of failed saves in a row
        self._unread: list[PendingStats] = []
        self.score_watch = ScoreWatch(train.metric)
        self.window = LossWindow()
        # Whether earlier validations used the same text, search and metrics as this process.
        self._is_comparable = True
        self.scores: dict[str, float] = {}  # the scores of this step, if it was validated
        self._start = time.perf_counter()  # moved back by the time of earlier starts

    def seconds(self) -> float:
        """Return the time that this run has taken, including earlier starts."""
        return time.perf_counter() - self._start

    def train(self) -> str:
        """Train until a limit is reached, and return the limit.

        Raises `Interrupted` after a signal, and `DivergedError` if the loss diverges.
        """
        config = self.config.train
        metrics = None
        if self.world.is_rank0:
            metrics = MetricLogger(self.run.metrics_path, self.run.tensorboard, self.step)
        self.progress = TrainProgress(
            config,
            metrics,
            self.step,
            self.seconds,
            PRECISION_NAMES[self.compute.dtype],
            self.window,
        )
        with self.stop.installed(), contextlib.closing(self.progress):
            with contextlib.closing(self.loader.updates()) as updates:  # type: ignore[type-var]
                if not self._is_comparable:
                    self.score_kept_best()
                # Before the resume, a signal may have ended the validation of this step early.
                if self.step and self._due(config.valid_every) and not self.scores:
                    self.validate()
                while (limit := self.limit_reached()) is None and self.stop.signal is None:
                    with self.progress.timed("data"):
                        update = next(updates)
                    stats = self.train_step(update)
                    # Before waiting for the GPU, because this can tell which rank is missing.
                    self.stop.share_signal()
                    # The host reads the previous update while a GPU computes this one.
                    self.report(stats, num_unread=int(self.compute.device.type == "cuda"))
                    if self._due(config.save_every):
                        self.save()  # before validating, which may fail for lack of memory
                    if self._due(config.valid_every) and self.validate():
                        self.save()
            self._finish()
        assert limit is not None
        return limit

    def train_step(self, update: Update) -> PendingStats:
        """Run one update, and forget the scores of the previous step."""
        self.scores = {}
        return super().train_step(update)

    def report(self, *stats: PendingStats, num_unread: int = 0) -> None:
        """Report the numbers of updates, except the newest `num_unread`, which are for later."""
        self._unread += stats
        while len(self._unread) > num_unread:
            pending = self._unread.pop(0)
            numbers = self.read_stats(pending)
            if numbers is not None:
                self.progress.add(pending.step, self.loader.position.epoch, numbers)
                self.watch.add(pending.step, numbers.loss)

    def validate(self) -> bool:
        """Validate the model, or its average, and return whether it is the best so far.

        If a signal arrives, the validation ends early, and the result is False.
        """
        self.report()
        if self.validator is None:
            return False
        try:
            with self.progress.timed("valid"), self.model_to_score() as model:
                scores = self.validator.validate(model, self.step, self._map_sharded)
        except (Abandoned, RankError) as error:
            if isinstance(error, RankError) and error.kind != Abandoned.__name__:
                raise
            self.stop.share_signal()
            return False
        self.scores = scores
        improved = self.score_watch.add(scores)
        self.progress.report_validation(
            self.step, scores, improved, self.score_watch.bad_validations
        )
        self.checkpoints.add_scores(self.step, scores)
        self.checkpoints.tidy()
        return improved

    def score_kept_best(self) -> None:
        """Validate the best checkpoint again, because validation has changed since its scores."""
        assert self.validator is not None
        step = self.world.broadcast_from_rank0(
            lambda: next(iter(self.checkpoints.ranked(comparable_only=False)), None)
        )
        if step is None:
            return
        logger.info(
            "the text, search or metric of validation has changed, so the best checkpoint so far "
            f"(update {step}) is scored again"
        )
        model, best = self._build(), self.run.checkpoint(step)
        load_weights(model, best.weights(), best.weights_path)
        try:
            with self.progress.timed("valid"):
                scores = self.validator.validate(
                    model.to(self.compute.device), step, self._map_sharded
                )
        except Abandoned:
            return
        self._is_comparable = True
        self.score_watch.add(scores)
        self.scores = scores if step == self.step else self.scores
        self.progress.report_validation(step, scores, improved=True, bad_validations=0)
        self.checkpoints.tidy()

    def _map_sharded(
        self, work: Callable[[Sequence[Any]], Sequence[Any]], items: Sequence[Any]
    ) -> list[Any]:
        """Like `World.map_sharded`, but a signal to one rank ends the work of all ranks."""

        def interruptible_work(part: Sequence[Any]) -> Sequence[Any]:
            with self.stop.interruptible():
                return work(part)

        return self.world.map_sharded(interruptible_work, items)

    def limit_reached(self) -> str | None:
        """Return the limit that ends this run, or None."""
        epoch, bad_validations = self.loader.position.epoch, self.score_watch.bad_validations
        return limit_reached(self.config.train, self.step, epoch, bad_validations)

    def is_validated(self) -> bool:
        """Whether the scores of this step have been written, or no validation is needed."""
        return self.validator is None or self.world.broadcast_from_rank0(
            lambda: self.step in self.checkpoints.ranked()
        )

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint of this step, unless it already exists.

        A failure is logged as a warning. Raises `CheckpointError` instead if this is the `last`
        checkpoint of the run, or after three failures in a row.
        """
        self.report()
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
            steps = self.checkpoints.steps()
            newest = (
                f"the last checkpoint is of update {steps[-1]}" if steps else "no checkpoint yet"
            )
            if last or self.failed_saves == FAILED_SAVES:
                raise CheckpointError(
                    f"{error}\n{newest}; free some disk space and run the same command again"
                ) from error
            logger.warning(
                f"{error}\ntraining continues; {newest} "
                f"({self.failed_saves} of {FAILED_SAVES} failed saves)"
            )

    def training_state(self) -> TrainingState:
        """Return the state of training, as stored in a checkpoint."""
        average = self.average.weights if self.average is not None else None
        optimizer = optimizer_tensors(self.optimizer, self.model) | self.loss_scale.state_dict()
        return TrainingState(self.weights(), average, optimizer, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of training except for tensors, as JSON values."""
        return {
            "format": STATE_FORMAT,
            "step": self.step,
            "loader": self.loader.state_dict(),
            "score_watch": self.score_watch.state_dict(),
            "metric": self.config.train.metric,
            "measured": self.checkpoints.valid_fingerprint,
            "window": self.window.state_dict(),
            "bad_updates": self.known_bad_updates,
            "scores": self.scores,
            "divergence": self.watch.state_dict(),
            "seconds": self.seconds(),
            "max_tokens": self.config.batching.max_tokens,
            "precision": PRECISION_NAMES[self.compute.dtype],
            "threads": self.config.threads,
            "data": self.prepared.data_fingerprint,
            "tokenizer": self.prepared.tokenizer.hash,
        }

    def load(self, folder: ModelFolder) -> None:
        """Resume from a checkpoint, which may have been written by any number of ranks.

        Raises `CheckpointError` if the checkpoint does not fit the model.
        """
        prepare_optimizer(self.optimizer)
        state = self.training_state().load(folder)
        self.loader.load_state_dict(state["loader"])
        self.watch.load_state_dict(state["divergence"])
        self.step, self.scores = state["step"], state["scores"]
        self._start = time.perf_counter() - state["seconds"]
        self.known_bad_updates = state.get("bad_updates", 0)
        self.bad_updates.fill_(self.known_bad_updates)
        if "window" in state:
            self.window.load_state_dict(state["window"])
        self._load_scores(state)

    def _load_scores(self, state: dict[str, Any]) -> None:
        """Restore the scores of earlier validations, if they used the same text and settings."""
        if self.validator is None:
            return
        current = self.validator.fingerprint, self.config.train.metric
        self._is_comparable = (state.get("measured"), state.get("metric")) == current
        if not self._is_comparable:
            self.scores = {}
            return
        self.score_watch.load_state_dict(state["score_watch"])
        if self.scores:
            return
        # The checkpoint may have been saved before the validation of its step.
        scores = self.world.broadcast_from_rank0(lambda: self.checkpoints.scores(self.step))
        if scores:
            self.scores = scores
            self.score_watch.add(scores)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 and self.stop.signal is None

    def _finish(self) -> None:
        """Validate and save the last step, and raise `Interrupted` if a signal ended the loop."""
        if self.stop.signal is None and not self.scores:
            self.validate()
        if self.step:
            self.save(last=True)
        if self.stop.signal is not None:
            raise Interrupted(
                f"{self.stop.signal.name}: stopped after update {self.step} and saved; "
                "the same command resumes the run",
                EXIT_CODES[self.stop.signal],
            )

    def _provenance(self) -> dict[str, Any]:
        return {
            "scores": self.scores,
            "seconds": round(self.seconds(), 1),
            "compute": str(self.compute),
            "data": self.prepared.data_fingerprint,
            "corpora": [corpus.label for corpus in self.config.data.train],
            "lengths": asdict(self.prepared.train.length_quantiles),
        }


@contextlib.contextmanager
def trial(config: Config, prepared: Prepared, compute: Compute) -> Iterator[Trainer]:
    """Yield a trainer for measurements: without validation, and in a temporary run folder."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"valid": []})})
    with tempfile.TemporaryDirectory() as folder:
        resolved = ResolvedRun(Path(folder), config)
        checkpoints = CheckpointManager(resolved.folder, 1, 1, config.train.metric)
        yield Trainer(resolved, prepared, compute, checkpoints)
