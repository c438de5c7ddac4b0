"""Compute how much memory training will need before it starts.

The largest micro-batches run forward and backward through the real model and loss, with fake
tensors, which have a size but no data. Every allocation is tracked until it is freed, so the memory
at the peak is counted, not estimated.
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
from mt.runtime.memory import ONEDNN_CACHE_SIZE, peak_process_memory
from mt.train.gradients import LossScale, apply_gradients
from mt.train.objective import loss_sums
from mt.train.optimizer import build_optimizer

# Resident bytes per byte in use by a micro-batch on a CPU. They differ because freed memory leaves
# gaps in the heap. With gradient checkpointing (True), more memory is freed, so gaps are larger.
# Measured with glibc 2.36: 1.29 to 1.44 in four configurations without checkpointing, and 2.7 to
# 3.2 in three configurations with it.
HEAP_FACTOR = {False: 1.4, True: 3.0}
# Resident bytes per bf16 matrix product that oneDNN has compiled and keeps, including the gaps
# between them. Measured: 2 MiB on a CPU with AVX512-BF16, 4 MiB on one with AMX.
COMPILED_PRODUCT = 3 << 20


@dataclass(frozen=True)
class MemoryPlan:
    """The bytes in use at the peak of training, keyed by their purpose."""

    shape: tuple[int, int, int]  # rows, source width and target width of the worst micro-batch
    kinds: dict[str, int]

    @property
    def peak(self) -> int:
        """Total bytes: resident memory on a CPU, allocated memory on a GPU."""
        return sum(self.kinds.values())


@dataclass(eq=False)
class Allocation:
    """The storage of one or more tensors. Only the same object counts as equal."""

    num_bytes: int
    phase: str  # the value of `Allocations.phase` when it was allocated


class Allocations(TorchDispatchMode):
    """Tracks the storages that operations allocate while this mode is active."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "setup"  # recorded in new allocations
        self.live: dict[int, Allocation] = {}  # keyed by the address of the storage
        self.num_bytes = self.peak_bytes = 0
        self.at_peak: list[Allocation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self.live:
            return
        self.live[address] = Allocation(num_bytes, self.phase)
        weakref.finalize(storage, self._free, address)
        self.num_bytes += num_bytes
        if self.num_bytes > self.peak_bytes:
            self.peak_bytes, self.at_peak = self.num_bytes, list(self.live.values())

    def _free(self, address: int) -> None:
        self.num_bytes -= self.live.pop(address).num_bytes

    def of(self, tensor: Tensor) -> Allocation:
        """Return the allocation that contains `tensor`."""
        return self.live[tensor.untyped_storage()._cdata]


def micro_batch_memory(
    config: Config,
    vocab_sizes: tuple[int, int],
    shape: tuple[int, int, int],
    compute: Compute,
    repeat: bool,
) -> Counter[str]:
    """Return the bytes that one micro-batch adds at its peak, keyed by their purpose.

    `shape` is (rows, source width, target width). With `repeat`, the micro-batch is the second one
    of its update, so the gradients of the first one exist already.
    """
    allocations = Allocations()
    with FakeTensorMode(), allocations:
        with compute.device:
            model = build_model(config.model, *vocab_sizes, config.seed).train()
        model.recompute(config.train.gradient_checkpointing)
        # The loss begins when the decoder has returned its hidden states.
        model.decoder.register_forward_hook(lambda *_: setattr(allocations, "phase", "loss"))
        batch = empty_batch(shape, compute.device, packed=packs(config.model, compute))
        for _ in range(1 + repeat):
            allocations.phase, allocations.peak_bytes = "model", 0
            with compute.autocast():
                loss = loss_sums(model, batch, config.train.label_smoothing)
            allocations.phase = "backward"
            kept_for_backward = set(allocations.live.values())
            loss.smoothed.backward()
            del loss
        gradients = {allocations.of(p.grad) for p in model.parameters() if p.grad is not None}

    kinds = ("gradients", "activations", "logits and loss", "temporary tensors")
    memory = Counter(dict.fromkeys(kinds, 0))
    for allocation in allocations.at_peak:
        if allocation in gradients:
            memory["gradients"] += allocation.num_bytes
        elif allocation.phase == "loss":
            memory["logits and loss"] += allocation.num_bytes
        elif allocation.phase != "setup":
            is_kept = allocation in kept_for_backward
            memory["activations" if is_kept else "temporary tensors"] += allocation.num_bytes
    return memory


def worst_shapes(shapes: IntArray) -> list[tuple[int, int, int]]:
    """Return the shapes with the most positions, target positions and attention weights."""
    rows, src, tgt = shapes.T
    costs = (
        rows * (src + tgt),
        rows * tgt * shapes.max() + rows * src,
        rows * (src * src + src * tgt + tgt * tgt),
    )
    worst = [tuple(shapes[cost.argmax()].tolist()) for cost in costs]
    return list(dict.fromkeys(worst))


def plan_memory(
    config: Config,
    vocab_sizes: tuple[int, int],
    shapes: IntArray,
    micro_batches: int,
    compute: Compute,
    process: int,
) -> MemoryPlan:
    """Return the memory at the peak of training, for the largest of `shapes`.

    `micro_batches` is the maximum number per update. `process` is the number of bytes that the
    process occupies before the model is built (see `process_memory`).
    """
    by_shape = {
        shape: micro_batch_memory(config, vocab_sizes, shape, compute, micro_batches > 1)
        for shape in worst_shapes(shapes)
    }
    shape, micro_batch = max(by_shape.items(), key=lambda item: item[1].total())
    with torch.device("meta"):
        parameters = list(Transformer(config.model, *vocab_sizes).parameters())
    weights = 4 * sum(p.numel() for p in parameters)
    mean_width = max(shapes[:, 0] @ shapes[:, side] for side in (1, 2)) / len(shapes)
    kinds = {
        "weights": weights,
        "optimizer state": 8 * sum(p.numel() for p in parameters if p.requires_grad),
        "averaged weights": weights if config.train.ema_decay else 0,
        **micro_batch,
        # Each position takes three ids of 8 bytes and a mask of 1 byte.
        "prefetched batches": int(config.batching.prefetch * micro_batches * mean_width * 25),
    }
    if compute.device.type == "cpu":
        factor = HEAP_FACTOR[config.train.gradient_checkpointing]
        kinds["heap fragmentation"] = int((factor - 1) * micro_batch.total())
        if compute.dtype != torch.float32:
            kinds["oneDNN kernels"] = COMPILED_PRODUCT * ONEDNN_CACHE_SIZE
        kinds["Python and libraries"] = process
    return MemoryPlan(shape, {name: size for name, size in kinds.items() if size})


def process_memory(config: Config, compute: Compute) -> int:
    """Return the resident bytes of Python and its libraries.

    A tiny model is trained for one update before, because libraries load some parts on first use.
    """
    sizes = {"d_model": 64, "d_ff": 64, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    small = config.model.model_copy(update=sizes)
    model = build_model(small, 512, 512, 0).to(compute.device).train()
    model.recompute(config.train.gradient_checkpointing)
    optimizer = build_optimizer(model, config.optim, compute.device)
    batch = empty_batch((32, 16, 16), compute.device, packed=False)
    with compute.autocast():
        loss = loss_sums(model, batch, 0.1).smoothed
    loss.backward()
    scale = LossScale(compute.device, enabled=False)
    diverged = torch.zeros((), dtype=torch.bool, device=compute.device)
    apply_gradients(model, optimizer, loss.detach(), scale, config.optim.clip_norm, diverged)
    return resident_memory()


def resident_memory() -> int:
    """Return the resident memory in bytes, or its peak if the system has no /proc."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_process_memory()
