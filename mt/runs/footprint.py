"""The memory that a run will take, counted, not guessed.

One micro-batch of each of the worst shapes goes forward and backward through the real model and
loss with tensors that have sizes and no content, and every storage is counted from the operation
that makes it to the moment it is dropped.
"""

import contextlib
import os
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mt.config import Config
from mt.data.batch import IntArray, empty_batch
from mt.model.kernels import packs
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from mt.runtime.memory import KEPT_PRODUCTS, peak_process_memory
from mt.train.gradients import LossScale, apply_gradients
from mt.train.objective import loss_sums
from mt.train.optimizer import build_optimizer

# Resident by live bytes of a micro-batch on a CPU, without and with gradient checkpointing.
# Measured, glibc 2.36, four and three configurations: 1.29 to 1.44, 2.7 to 3.2. What lives on
# between what is freed leaves holes, and recomputing frees most.
HEAP_FACTOR = {False: 1.4, True: 3.0}
# Resident bytes of a product that oneDNN compiled for bf16 and keeps, with what lies between two of
# them. Measured, two processors: 2 MiB with AVX512-BF16, 4 MiB with AMX.
COMPILED_PRODUCT = 3 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by kind at the moment of the peak; they add up to it."""

    shape: tuple[int, int, int]  # rows, source width, target width of the worst micro-batch
    kinds: dict[str, int]

    @property
    def peak(self) -> int:
        """Of resident memory on a CPU, of allocated memory on a GPU."""
        return sum(self.kinds.values())


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from there to when they are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[int, int]] = {}  # by address: (number, bytes)
        self.made = self.now = self.peak = 0
        self.at_peak: dict[int, int] = {}  # by number: bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self.live:
            return
        self.made += 1
        self.live[address] = (self.made, size)
        weakref.finalize(storage, self._drop, address)
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.live.values())

    def _drop(self, address: int) -> None:
        self.now -= self.live.pop(address)[1]

    def numbers(self) -> set[int]:
        """The storages that live now."""
        return {number for number, _ in self.live.values()}

    def restart(self) -> None:
        """Look for the peak from here on."""
        self.peak = 0


def micro_batch_memory(
    config: Config,
    vocab_sizes: tuple[int, int],
    shape: tuple[int, int, int],
    compute: Compute,
    repeat: bool,
) -> Counter[str]:
    """Bytes by kind at the peak of one micro-batch [rows, source width, target width]; with
    `repeat`, of one that adds to gradients.
    """
    storages, hidden = LiveStorages(), 0

    def mark(*_: Any) -> None:
        nonlocal hidden
        hidden = storages.made

    with FakeTensorMode(), storages:
        with compute.device:
            model = build_model(config.model, *vocab_sizes, config.seed).train()
        model.recompute(config.train.gradient_checkpointing)
        model.decoder.register_forward_hook(mark)
        batch = empty_batch(shape, compute.device, packed=packs(config.model, compute))
        before = storages.numbers()
        for _ in range(1 + repeat):
            storages.restart()
            with compute.autocast():
                loss = loss_sums(model, batch, config.train.label_smoothing)
            kept, end = storages.numbers(), storages.made
            loss.smoothed.backward()
            del loss
        gradients = {
            storages.live[p.grad.untyped_storage()._cdata][0]
            for p in model.parameters()
            if p.grad is not None
        }
    kinds: Counter[str] = Counter()
    for number, size in storages.at_peak.items():
        if number in gradients:
            kinds["gradients"] += size
        elif number not in before:
            in_loss = hidden < number <= end
            kinds[
                "loss and its chunks"
                if in_loss
                else "activations"
                if number in kept
                else "in flight"
            ] += size
    return kinds


def worst_shapes(shapes: IntArray) -> list[tuple[int, int, int]]:
    """The micro-batches with most positions, target positions and attention weights."""
    rows, src, tgt = shapes.T
    costs = (
        rows * (src + tgt),
        rows * tgt * shapes.max() + rows * src,
        rows * (src * src + src * tgt + tgt * tgt),
    )
    found = [tuple(int(n) for n in shapes[cost.argmax()]) for cost in costs]
    return list(dict.fromkeys(found))  # type: ignore[arg-type]


def plan_memory(
    config: Config,
    vocab_sizes: tuple[int, int],
    shapes: IntArray,
    micro_batches: int,
    compute: Compute,
    process: int,
) -> MemoryPlan:
    """Memory by kind at the peak of training, of the worst of `shapes` [micro-batches, 3].

    An update has `micro_batches` at most; `process` bytes are there before the model.
    """
    repeat = micro_batches > 1
    found = {
        shape: micro_batch_memory(config, vocab_sizes, shape, compute, repeat)
        for shape in worst_shapes(shapes)
    }
    shape = max(found, key=lambda shape: found[shape].total())
    with torch.device("meta"):
        parameters = list(Transformer(config.model, *vocab_sizes).parameters())
    weights = 4 * sum(p.numel() for p in parameters)
    moments = 8 * sum(p.numel() for p in parameters if p.requires_grad)
    average = weights if config.train.ema_decay else 0
    kinds = {"weights": weights, "optimizer state": moments, "average of weights": average}
    names = ("gradients", "activations", "loss and its chunks", "in flight")
    kinds |= {name: found[shape][name] for name in names}
    sides = max(int(shapes[:, 0] @ shapes[:, side]) for side in (1, 2)) / len(shapes)
    kinds["prefetched batches"] = int(
        config.batching.prefetch * micro_batches * sides * 25
    )  # 3 ids of 8 bytes, a mask
    if compute.device.type == "cpu":
        kinds["holes in the heap"] = int(
            (HEAP_FACTOR[config.train.gradient_checkpointing] - 1) * found[shape].total()
        )
        if compute.dtype != torch.float32:
            kinds["compiled products"] = COMPILED_PRODUCT * KEPT_PRODUCTS
        kinds["process"] = process
    return MemoryPlan(shape, {name: size for name, size in kinds.items() if size})


def process_memory(config: Config, compute: Compute) -> int:
    """Resident bytes of interpreter, torch and libraries, once an update of a very small model has
    loaded what loads late.
    """
    sizes = {"d_model": 64, "d_ff": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    model = (
        build_model(config.model.model_copy(update=sizes), 512, 512, 0).to(compute.device).train()
    )
    model.recompute(config.train.gradient_checkpointing)
    optimizer = build_optimizer(model, config.optim, compute.device)
    with compute.autocast():
        loss = loss_sums(
            model, empty_batch((32, 16, 16), compute.device, packed=False), 0.1
        ).smoothed
    loss.backward()
    scale = LossScale(compute.device, enabled=False)
    diverged = torch.zeros((), dtype=torch.bool, device=compute.device)
    apply_gradients(model, optimizer, loss.detach(), scale, config.optim.clip_norm, diverged)
    return resident_memory()


def resident_memory() -> int:
    """Bytes of this process in memory now; where the system does not tell, the most there have
    been.
    """
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_process_memory()
