"""The training loop: updates from the loader, validation, checkpoints, and an end that can be gone on from, bit for bit.

All that moves stands in `state_dict`; every random draw is a function of (seed, update, micro-batch), so no generator is saved.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mt.checkpoint import CheckpointManager, TrainingState, load_weights
from mt.config import Config
from mt.data.loader import TrainLoader, Update
from mt.data.prepare import Prepared
from mt.device import Compute
from mt.errors import DivergedError, Interrupted
from mt.log import MetricLogger
from mt.metrics import is_better
from mt.model.transformer import build_model
from mt.train.loss import loss_sums
from mt.train.optim import WeightAverage, build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors
from mt.train.progress import TrainProgress, UpdateStats
from mt.train.stopping import EXIT_CODES, Abandoned, SignalStop, limit_reached
from mt.train.validation import Validator

logger = logging.getLogger(__name__)


class Trainer:
    """One run: a model, its data, its optimizer, and how far they are."""

    def __init__(self, config: Config, prepared: Prepared, run_dir: Path, compute: Compute, checkpoints: CheckpointManager) -> None:
        self.config, self.prepared, self.run_dir, self.compute, self.checkpoints = config, prepared, run_dir, compute, checkpoints
        train, tokenizer = config.train, prepared.tokenizer
        self.model = build_model(config.model, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, config.seed).to(compute.device)
        self.optimizer = build_optimizer(self.model, config.optim, compute.device)
        self.average = WeightAverage(self.model, train.ema_decay) if train.ema_decay else None
        self.loader = TrainLoader(
            prepared.train, config.batching, config.seed, grad_accum_steps=train.grad_accum_steps, batch_tokens=train.batch_tokens
        )
        self.validator = Validator(config, tokenizer, compute, run_dir) if config.data.valid else None
        self.stop = SignalStop()
        self.step = 0
        self.best: float | None = None
        self.bad_validations = 0
        self.scores: dict[str, float] = {}  # of the last validation, if it was at this step
        self._began = time.perf_counter()   # less what earlier starts of this run took

    def seconds(self) -> float:
        """Time that this run has taken, its earlier starts included."""
        return time.perf_counter() - self._began

    def train(self) -> str:
        """Train until a limit is reached and say which. Raises `Interrupted` after a signal, `DivergedError` for numbers gone wrong."""
        config = self.config.train
        metrics = MetricLogger(self.run_dir, self.step)
        self.progress = TrainProgress(config, metrics, self.step, self.seconds)
        updates = self.loader.updates()
        with self.stop.installed(), contextlib.closing(metrics), contextlib.closing(self.progress):
            try:
                if self.step and self._due(config.valid_every) and not self.scores:  # a signal had abandoned it
                    self.validate()
                while (limit := self.limit_reached()) is None and self.stop.signal is None:
                    with self.progress.waiting():
                        update = next(updates)
                    self.progress.add(self.step + 1, self.loader.position.epoch, self.train_step(update))
                    improved = self._due(config.valid_every) and self.validate()
                    if improved or self._due(config.save_every):
                        self.save()
            finally:
                updates.close()  # type: ignore[attr-defined]
            self._finish()
        assert limit is not None
        return limit

    def train_step(self, update: Update) -> UpdateStats:
        """One update over its micro-batches. Raises `DivergedError` before anything that is not finite reaches the weights."""
        step, optim = self.step + 1, self.config.optim
        self.model.train()
        loss = nll = 0.0
        for index, batch in enumerate(update.micro_batches):
            seed_draws(self.config.seed, step, index)
            with self.compute.autocast():
                sums = loss_sums(self.model, batch.to(self.compute.device), self.config.train.label_smoothing)
            (sums.smoothed / update.num_tokens).backward()
            loss, nll = loss + float(sums.smoothed.detach()), nll + float(sums.nll)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm or float("inf")))
        stats = UpdateStats(loss / update.num_tokens, nll / update.num_tokens, norm, learning_rate(step, optim), update.num_tokens)
        if not (abs(stats.loss) < float("inf") and norm < float("inf")):  # false for NaN too
            raise DivergedError(
                f"update {step}: loss {stats.loss}, gradient norm {norm}; training has diverged and the weights are as before this update. "
                "Try a lower optim.lr, a longer optim.warmup_steps, model.norm: pre, or optim.clip_norm: 1.0"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = stats.lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step)
        self.step = step
        self.scores = {}
        return stats

    def validate(self) -> bool:
        """Score the model (its average, where one is kept); whether it is the best so far. A signal abandons this, unrecorded."""
        if self.validator is None:
            return False
        try:
            with self.progress.validating(), self.stop.interruptible(), self.averaged_weights():
                scores = self.validator.validate(self.model, self.step)
        except Abandoned:
            return False
        self.scores = scores
        metric = self.config.train.metric
        improved = is_better(metric, scores[metric], self.best)
        self.bad_validations = 0 if improved else self.bad_validations + 1
        self.best = scores[metric] if improved else self.best
        self.progress.validated(self.step, scores, improved, self.bad_validations)
        self.checkpoints.update_links()
        return improved

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model with the weights' average in place, where one is kept."""
        if self.average is None:
            yield
            return
        raw = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        load_weights(self.model, self.average.weights, self.run_dir)
        try:
            yield
        finally:
            load_weights(self.model, raw, self.run_dir)

    def limit_reached(self) -> str | None:
        """The limit that ends this run, or None."""
        return limit_reached(self.config.train, self.step, self.loader.position.epoch, self.bad_validations)

    def save(self) -> None:
        """Write a checkpoint of this step, if there is none yet."""
        if self.step in self.checkpoints.steps():
            return
        with self.progress.saving():
            self.checkpoints.save(self.step, self.config, self.prepared.tokenizer, self.training_state(), self._provenance())

    def training_state(self) -> TrainingState:
        """All that moves, as a checkpoint holds it."""
        weights = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        average = self.average.state_dict() if self.average is not None else None
        return TrainingState(weights, average, optimizer_tensors(self.optimizer, self.model), self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Position and scores, as JSON holds them."""
        return {
            "step": self.step, "loader": self.loader.state_dict(), "best": self.best, "bad_validations": self.bad_validations,
            "scores": self.scores, "seconds": self.seconds(),
            "data": self.prepared.data_fingerprint, "tokenizer": self.prepared.tokenizer.hash,
        }  # fmt: skip

    def load(self, folder: Path, training: TrainingState) -> None:
        """Go on from a checkpoint."""
        load_weights(self.model, training.weights, folder)
        load_optimizer_tensors(self.optimizer, self.model, training.optimizer)
        if self.average is not None:
            self.average.load_state_dict(training.average or training.weights)
        state = training.state
        self.loader.load_state_dict(state["loader"])
        self.step, self.scores = state["step"], state["scores"]
        self._began = time.perf_counter() - state["seconds"]
        self.best, self.bad_validations = state["best"], state["bad_validations"]

    def _due(self, every: int) -> bool:
        return self.step % every == 0 and self.stop.signal is None

    def _finish(self) -> None:
        """Validate what was not, save, and raise where a signal ended the loop."""
        if self.stop.signal is None and not self.scores:
            self.validate()
        if self.step:
            self.save()
        if self.stop.signal is not None:
            message = f"{self.stop.signal.name}: stopped after update {self.step} and saved; the same command goes on"
            raise Interrupted(message, EXIT_CODES[self.stop.signal])

    def _provenance(self) -> dict[str, Any]:
        return {
            "scores": self.scores, "seconds": round(self.seconds(), 1), "compute": str(self.compute),
            "data": self.prepared.data_fingerprint, "corpora": [corpus.label for corpus in self.config.data.train],
        }  # fmt: skip


def seed_draws(seed: int, step: int, micro_batch: int) -> None:
    """Make the draws of a micro-batch a function of its place alone."""
    digest = hashlib.sha256(f"{seed}:{step}:{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
