"""Updates of the weights: micro-batches forward and backward, their gradients added up, one step of
the optimizer.

Every random draw is a function of (seed, update, micro-batch), so no generator is saved.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from mt.artifacts import RunFolder
from mt.config import ResolvedRun
from mt.data.batch import AnyBatch, empty_batch, moved
from mt.data.order import TrainLoader, Update
from mt.data.prepare import Prepared
from mt.decode.loading import load_weights
from mt.model.kernels import compile_layers, packs
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from mt.runtime.shards import unsharded
from mt.runtime.world import ALONE, World
from mt.train.cross_entropy import Loss
from mt.train.finetune import initialize
from mt.train.gradients import LossScale, PendingStats, apply_gradients
from mt.train.objective import TrainingLoss
from mt.train.optimizer import WeightAverage, build_optimizer, learning_rate


class Updater:
    """A model, its data and its optimizer, and how many updates they have had."""

    def __init__(
        self, resolved: ResolvedRun, prepared: Prepared, compute: Compute, world: World = ALONE
    ) -> None:
        config, train = resolved.config, resolved.config.train
        self.config, self.prepared, self.world = config, prepared, world
        self.run = RunFolder(resolved.folder)
        self.compute = compute.set_threads()
        self.model = self._build()  # on the CPU; `wrap` moves it
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
            prepared.train, config.batching, config.seed,
            grad_accum_steps=train.grad_accum_steps, batch_tokens=train.batch_tokens, packed=packs(config.model, compute),
            rank=world.rank, size=world.size,
        )  # fmt: skip
        self.bad_updates = torch.zeros((), device=compute.device)
        self.step = 0

    def _build(self) -> Transformer:
        """A model of this run's sizes, as it begins."""
        sizes = self.prepared.tokenizer.vocab_sizes
        return build_model(self.config.model, *sizes, self.config.seed)

    def train_step(self, update: Update) -> PendingStats:
        """One update over its micro-batches; one that is not finite leaves the weights as they are,
        and its stats raise when read.
        """
        self.step += 1
        self.model.train()
        sums = [self.micro_batch(update, turn) for turn in range(self._turns(update))]
        means = self.world.all_reduce_sum(torch.stack(sums).sum(dim=0)) / update.num_tokens
        lr, scale = learning_rate(self.step, self.config.optim), self.loss_scale.scale
        norm = self.optimize(means[0], lr)
        return PendingStats(
            self.step, torch.stack([*means, norm, self.bad_updates]), lr, update, scale
        )

    def _turns(self, update: Update) -> int:
        """Micro-batches of each rank, those that only add zero included."""
        return max(len(update.micro_batches), -(-len(update.indices) // self.world.size))

    def micro_batch(self, update: Update, turn: int) -> Tensor:
        """Add the gradients of this rank's micro-batch of a turn, or zero where it has none; gives
        its loss sums (smoothed, nll).
        """
        has_one = turn < len(update.micro_batches)
        batch = (
            update.micro_batches[turn]
            if has_one
            else empty_batch((1, 1, 1), torch.device("cpu"), packed=self.loader.packed)
        )
        seed_draws(self.config.seed, self.step, turn * self.world.size + self.world.rank)
        with self.world.gradient_sync(self.criterion, is_last=turn == self._turns(update) - 1):
            loss = self.forward(moved(batch, self.compute.device))
            # The gradients' mean over the ranks is taken later, hence the factor.
            self.backward(
                loss.smoothed
                * (self.loss_scale.scale * (has_one * self.world.size / update.num_tokens))
            )
        return torch.stack([loss.smoothed.detach(), loss.nll]) * has_one

    def forward(self, batch: AnyBatch) -> Loss:
        """The loss of one micro-batch."""
        with self.compute.autocast():
            return cast(Loss, self.criterion(batch))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss` to those of earlier micro-batches."""
        loss.backward()

    def optimize(self, loss: Tensor, lr: float) -> Tensor:
        """Use up the gradients; gives their norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clip_norm = self.config.optim.clip_norm
        max_bad = self.config.train.max_bad_updates
        norm, self.bad_updates = apply_gradients(
            self.model, self.optimizer, loss, self.loss_scale, clip_norm, self.bad_updates, max_bad
        )
        if self.average is not None:
            self.average.update(self.model, self.step)
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The model's own weights by name, not copied."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @contextlib.contextmanager
    def model_to_score(self) -> Iterator[Transformer]:
        """A whole model with the weights' average, where one is kept: the model itself, or a copy
        where it is shared out.
        """
        scored = self.weights() if self.average is None else self.average.weights
        if self.is_sharded:
            model = self._build()
            whole = {name: unsharded(weight) for name, weight in scored.items()}
            load_weights(model, whole, self.run.path)
            yield model.to(self.compute.device)
        elif self.average is None:
            yield self.model
        else:
            raw = {name: weight.clone() for name, weight in self.weights().items()}
            load_weights(self.model, scored, self.run.path)
            try:
                yield self.model
            finally:
                load_weights(self.model, raw, self.run.path)


def seed_draws(seed: int, step: int, micro_batch: int) -> None:
    """Make the draws of a micro-batch a function of its place alone."""
    digest = hashlib.sha256(f"{seed}:{step}:{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
