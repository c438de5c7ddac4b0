"""One update of the weights: gradients for its micro-batches, then a step of the optimizer.

Random numbers depend only on the seed, the update and the micro-batch, so a checkpoint does not
contain the state of a random number generator.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from mt.artifacts import RunFolder
from mt.config import ResolvedRun
from mt.data.batch import AnyBatch, empty_batch, to_device
from mt.data.order import TrainLoader, Update
from mt.data.prepare import Prepared
from mt.decode.loading import load_weights
from mt.errors import DivergedError
from mt.model.kernels import compile_layers, packs
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from mt.runtime.shards import unsharded
from mt.runtime.world import ALONE, World
from mt.train.crash import write_crash
from mt.train.cross_entropy import Loss
from mt.train.finetune import initialize
from mt.train.gradients import LossScale, PendingStats, UpdateStats, apply_gradients
from mt.train.objective import TrainingLoss
from mt.train.optimizer import WeightAverage, build_optimizer, learning_rate
from mt.train.stopping import REMEDIES

logger = logging.getLogger(__name__)


class Updater:
    """A model with its data and optimizer, and the number of updates so far (`step`)."""

    def __init__(
        self, resolved: ResolvedRun, prepared: Prepared, compute: Compute, world: World = ALONE
    ) -> None:
        config, train = resolved.config, resolved.config.train
        self.config, self.prepared, self.world = config, prepared, world
        self.run = RunFolder(resolved.folder)
        self.compute = compute.set_process_threads()
        self.model = self._build()  # on the CPU until `World.wrap` moves it
        initialize(self.model, config, resolved.is_new)
        self.model.recompute(train.gradient_checkpointing)
        if train.compile:
            compile_layers(self.model.layers, compute)
        self.is_sharded = train.parallel == "fsdp" and not world.is_alone
        self.criterion = world.wrap(
            TrainingLoss(self.model, train.label_smoothing),
            train.parallel,
            self.model.layers,
            compute.device,
        )
        self.optimizer = build_optimizer(self.model, config.optim, compute.device)
        self.average = WeightAverage(self.model, train.ema_decay) if train.ema_decay else None
        self.loss_scale = LossScale(compute.device, enabled=compute.dtype == torch.float16)
        self.loader = TrainLoader(
            prepared.train,
            config.batching,
            config.seed,
            grad_accum_steps=train.grad_accum_steps,
            batch_tokens=train.batch_tokens,
            packed=packs(config.model, compute),
            rank=world.rank,
            size=world.size,
        )
        self.bad_updates = torch.zeros((), device=compute.device)
        self.known_bad_updates = 0  # number of bad updates that the host knows of
        self.step = 0

    def _build(self) -> Transformer:
        """Build the model of this run with its initial random weights."""
        sizes = self.prepared.tokenizer.vocab_sizes
        return build_model(self.config.model, *sizes, self.config.seed)

    def train_step(self, update: Update) -> PendingStats:
        """Run one update, and return its numbers, which a GPU may still be computing.

        If the loss or a gradient is not finite, the weights do not change, and reading the numbers
        raises `DivergedError`.
        """
        self.step += 1
        self.model.train()
        sums = [self.micro_batch(update, index) for index in range(self._num_micro_batches(update))]
        means = self.world.all_reduce_sum(torch.stack(sums).sum(dim=0)) / update.num_tokens
        lr, scale = learning_rate(self.step, self.config.optim), self.loss_scale.scale
        norm = self.optimize(means[0], lr)
        return PendingStats(
            self.step, torch.stack([*means, norm, self.bad_updates]), lr, update, scale
        )

    def _num_micro_batches(self, update: Update) -> int:
        """Return the number of micro-batches that each rank runs, including empty ones."""
        return max(len(update.micro_batches), -(-len(update.indices) // self.world.size))

    def micro_batch(self, update: Update, index: int) -> Tensor:
        """Add the gradients of this rank's micro-batch `index`, and return its loss sums.

        All ranks run the same number of micro-batches. A rank with fewer micro-batches than
        the others also runs an empty one, which adds zero.
        """
        is_real = index < len(update.micro_batches)
        batch = (
            update.micro_batches[index]
            if is_real
            else empty_batch((1, 1, 1), torch.device("cpu"), packed=self.loader.packed)
        )
        seed_draws(self.config.seed, self.step, index * self.world.size + self.world.rank)
        is_last = index == self._num_micro_batches(update) - 1
        with self.world.gradient_sync(self.criterion, is_last):
            loss = self.forward(to_device(batch, self.compute.device))
            # Multiplied by the number of ranks, because DDP and FSDP2 average gradients over them.
            factor = is_real * self.world.size / update.num_tokens
            self.backward(loss.smoothed * (self.loss_scale.scale * factor))
        return torch.stack([loss.smoothed.detach(), loss.nll]) * is_real

    def forward(self, batch: AnyBatch) -> Loss:
        """Compute the loss sums of a micro-batch, with autocast if the precision needs it."""
        with self.compute.autocast():
            loss: Loss = self.criterion(batch)
            return loss

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of `loss`, and add them to the gradients so far."""
        loss.backward()

    def optimize(self, loss: Tensor, lr: float) -> Tensor:
        """Update the weights with the accumulated gradients, and return the gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm, self.bad_updates = apply_gradients(
            self.model,
            self.optimizer,
            loss,
            self.loss_scale,
            self.config.optim.clip_norm,
            self.bad_updates,
            self.config.train.max_bad_updates,
        )
        if self.average is not None:
            self.average.update(self.model, self.step)
        return norm

    def read_stats(self, pending: PendingStats) -> UpdateStats | None:
        """Return the numbers of an update, or None if the update was bad and was skipped.

        A bad update is written to a crash folder. Raises `DivergedError` if there are more bad
        updates than `train.max_bad_updates`. All ranks must call this.
        """
        try:
            return pending.read(self.world.gpu_timeout, self.known_bad_updates)
        except DivergedError as error:
            self.known_bad_updates += 1
            weights = self.world.gather_to_rank0(self.weights())
            crash = ""
            if self.world.is_rank0:
                batches = self.loader.all_micro_batches(pending.update)
                crash = write_crash(
                    self.run, self.config, self.prepared.tokenizer, weights, batches, pending
                )
            allowed = self.config.train.max_bad_updates
            if self.known_bad_updates > allowed:
                remedy = f"or skip it with train.max_bad_updates={self.known_bad_updates}"
                raise DivergedError(f"{error}. {REMEDIES}; {remedy}\n{crash}") from error
            count = f"{self.known_bad_updates} of train.max_bad_updates: {allowed}"
            logger.warning(f"{error}; skipped ({count})\n{crash}")
            return None

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters of the model by name, without copying them."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @contextlib.contextmanager
    def model_to_score(self) -> Iterator[Transformer]:
        """Yield the model to validate, with averaged weights if the run averages weights.

        If the model is sharded, this is a complete copy. Otherwise, it is the model itself, and at
        the end of the block its own weights are restored.
        """
        weights = self.weights() if self.average is None else self.average.weights
        if self.is_sharded:
            model = self._build()
            whole = {name: unsharded(weight) for name, weight in weights.items()}
            load_weights(model, whole, self.run.path)
            yield model.to(self.compute.device)
        elif self.average is None:
            yield self.model
        else:
            raw = {name: weight.clone() for name, weight in self.weights().items()}
            load_weights(self.model, weights, self.run.path)
            try:
                yield self.model
            finally:
                load_weights(self.model, raw, self.run.path)


def seed_draws(seed: int, step: int, micro_batch: int) -> None:
    """Seed PyTorch for one micro-batch, with a hash of the seed, the update and the micro-batch."""
    digest = hashlib.sha256(f"{seed}:{step}:{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
