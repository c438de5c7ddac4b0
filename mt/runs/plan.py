"""What a run will take, before it begins: parameters, memory, corpus and time.

Memory is counted, not guessed: one micro-batch of each of the worst shapes goes forward and backward through the real model and loss with
tensors that have sizes and no content, and every storage is counted from the operation that makes it to the moment it is dropped.
"""

import contextlib
import os
import time
import weakref
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mt.config import AUTO, Config, ModelConfig
from mt.data.batch import IntArray, empty_batch
from mt.data.order import TrainLoader
from mt.data.prepare import Prepared, prepare
from mt.log import format_seconds
from mt.model.kernels import packs
from mt.model.transformer import Transformer, build_model
from mt.runs.autobatch import find_max_tokens, with_max_tokens
from mt.runs.resolve import with_initial_model
from mt.runtime.device import Compute, choose_compute
from mt.runtime.memory import KEPT_PRODUCTS, available_memory, peak_process_memory
from mt.train.gradients import LossScale, apply_gradients
from mt.train.objective import loss_sums
from mt.train.optimizer import build_optimizer
from mt.train.trainer import trial

# Resident by live bytes of a micro-batch on a CPU, without and with gradient checkpointing. Measured, glibc 2.36, four and three
# configurations: 1.29 to 1.44, 2.7 to 3.2. What lives on between what is freed leaves holes, and recomputing frees most.
HEAP_FACTOR = {False: 1.4, True: 3.0}
# Resident bytes of a product that oneDNN compiled for bf16 and keeps, with what lies between two of them. Measured, two
# processors: 2 MiB with AVX512-BF16, 4 MiB with AMX.
COMPILED_PRODUCT = 3 << 20
MEASURE_UPDATES, MEASURE_SECONDS = 10, 20.0
LENGTH_EDGES = (8, 16, 32, 64, 128, 256)
MIB = 1 << 20


@dataclass(frozen=True)
class CorpusPlan:
    """One epoch of the training data; tokens count the end of sentence."""

    pairs: int
    src_tokens: int
    tgt_tokens: int
    updates: int
    shapes: IntArray  # [micro-batches, 3] rows, source width, target width
    micro_batches: int  # of an update, at most
    histogram: list[tuple[str, int, int]]  # (lengths, source sentences, target sentences)

    @property
    def padding(self) -> float:
        """Share of padding in padded micro-batches."""
        rows, src, tgt = self.shapes.T
        return 1 - (self.src_tokens + self.tgt_tokens) / int((rows * (src + tgt)).sum())


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
    """Bytes by kind at the peak of one micro-batch [rows, source width, target width]; with `repeat`, of one that adds to gradients."""
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
    config: Config, vocab_sizes: tuple[int, int], corpus: CorpusPlan, compute: Compute, process: int
) -> MemoryPlan:
    """Memory by kind at the peak of training, of the worst micro-batch; `process` bytes are there before the model."""
    repeat = corpus.micro_batches > 1
    found = {
        shape: micro_batch_memory(config, vocab_sizes, shape, compute, repeat)
        for shape in worst_shapes(corpus.shapes)
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
    sides = max(int(corpus.shapes[:, 0] @ corpus.shapes[:, side]) for side in (1, 2)) / len(
        corpus.shapes
    )
    kinds["prefetched batches"] = int(
        config.batching.prefetch * corpus.micro_batches * sides * 25
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
    """Resident bytes of interpreter, torch and libraries, once an update of a very small model has loaded what loads late."""
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
    scale, diverged = (
        LossScale(compute.device, enabled=False),
        torch.zeros((), dtype=torch.bool, device=compute.device),
    )
    apply_gradients(model, optimizer, loss.detach(), scale, config.optim.clip_norm, diverged)
    return resident_memory()


def resident_memory() -> int:
    """Bytes of this process in memory now; where the system does not tell, the most there have been."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_process_memory()


def plan_corpus(loader: TrainLoader) -> CorpusPlan:
    """Count the first epoch, by lengths alone."""
    edges = np.array([*LENGTH_EDGES, np.iinfo(np.int64).max])
    shapes, updates, largest = [], 0, 0
    tokens, counts = np.zeros(2, np.int64), np.zeros((2, len(edges)), np.int64)
    for update in loader.epoch_updates():
        updates, largest = updates + 1, max(largest, len(update))
        for indices in update:
            lengths = np.stack(loader.cache.lengths(indices)) + 1
            shapes.append((len(indices), *lengths.max(axis=1)))
            tokens += lengths.sum(axis=1)
            for side in (0, 1):
                counts[side] += np.bincount(
                    np.searchsorted(edges, lengths[side]), minlength=len(edges)
                )
    starts = (1, *(edge + 1 for edge in LENGTH_EDGES))
    names = [f"{start} to {edge}" for start, edge in zip(starts, LENGTH_EDGES, strict=False)] + [
        f"over {LENGTH_EDGES[-1]}"
    ]
    histogram = [(name, int(src), int(tgt)) for name, src, tgt in zip(names, *counts, strict=True)]
    return CorpusPlan(
        len(loader.cache),
        int(tokens[0]),
        int(tokens[1]),
        updates,
        np.array(shapes),
        largest,
        histogram,
    )


def parameters_by_block(model: Transformer) -> dict[str, int]:
    """Parameters of each block; a matrix that blocks share counts in the first of them."""
    blocks = {
        "source embedding": model.encoder.embed_tokens, "target embedding": model.decoder.embed_tokens,
        "encoder layers": torch.nn.ModuleList([*model.encoder.layers, model.encoder.layer_norm]),
        "decoder layers": torch.nn.ModuleList([*model.decoder.layers, model.decoder.layer_norm]),
        "output projection": torch.nn.ParameterList(p for name, p in model.named_parameters() if name.startswith("output_")),
    }  # fmt: skip
    seen: set[int] = set()
    counts = {}
    for name, block in blocks.items():
        own = [p for p in block.parameters() if id(p) not in seen]
        seen.update(map(id, own))
        counts[name] = sum(p.numel() for p in own)
    return counts


def measure_speed(config: Config, prepared: Prepared, compute: Compute) -> tuple[int, float]:
    """(updates, target tokens a second) of real updates after a first one; the model is thrown away."""
    tokens, done, began = 0, -1, 0.0
    with (
        trial(config, prepared, compute) as trainer,
        contextlib.closing(trainer.loader.updates()) as updates,  # type: ignore[type-var]
    ):
        for update in updates:
            trainer.train_step(update).read()
            done += 1
            if done == 0:
                began = time.perf_counter()
                continue
            tokens += update.num_tokens
            seconds = time.perf_counter() - began
            if done == MEASURE_UPDATES or seconds > MEASURE_SECONDS:
                return done, tokens / seconds
    raise AssertionError("updates never end")


def plan(config: Config) -> str:
    """The whole plan as text; prepares the data, writes nothing into the run folder. Raises `MTError` as training would."""
    config, _ = with_initial_model(config)
    deterministic = config.train.deterministic
    compute = choose_compute(
        config.device,
        config.precision,
        config.threads,
        for_training=True,
        deterministic=deterministic,
    ).set_threads()
    process = (
        process_memory(config, compute) if compute.device.type == "cpu" else 0
    )  # before preparing leaves its traces
    prepared = prepare(config)
    if config.batching.max_tokens == AUTO:
        config = with_max_tokens(config, find_max_tokens(config, prepared, compute))
    vocab_sizes = prepared.tokenizer.vocab_sizes
    train = config.train
    corpus = plan_corpus(
        TrainLoader(
            prepared.train,
            config.batching,
            config.seed,
            grad_accum_steps=train.grad_accum_steps,
            batch_tokens=train.batch_tokens,
        )
    )
    memory = plan_memory(config, vocab_sizes, corpus, compute, process)
    parts = [
        parameters_text(config.model, vocab_sizes),
        memory_text(memory, compute),
        corpus_text(corpus),
    ]
    return "\n\n".join([*parts, time_text(config, prepared, corpus, memory, compute)])


def parameters_text(config: ModelConfig, vocab_sizes: tuple[int, int]) -> str:
    """Parameters by block and their sum."""
    with torch.device("meta"):
        counts = parameters_by_block(Transformer(config, *vocab_sizes))
    tied = {
        "all": ("target embedding", "output projection"),
        "decoder": ("output projection",),
        "none": (),
    }[config.tie_embeddings]
    first = "source embedding" if config.tie_embeddings == "all" else "target embedding"
    rows = [
        f"  {name:20} {f'tied to the {first}, counted there' if name in tied else f'{count:14,}'}"
        for name, count in counts.items()
    ]
    return "\n".join(["Parameters", *rows, f"  {'total':20} {sum(counts.values()):14,}"])


def memory_text(memory: MemoryPlan, compute: Compute) -> str:
    """Memory by kind at the peak."""
    rows, src, tgt = memory.shape
    head = f"Memory at the peak, MiB: {compute}; worst micro-batch {rows} rows x {src} source, {tgt} target"
    lines = [f"  {name:20} {size / MIB:10,.1f}" for name, size in memory.kinds.items()]
    if compute.device.type == "cpu":
        about = (
            "  of these, holes and compiled products are by experience, the process is measured, all else is counted; "
            "preparing data left out"
        )
    else:
        about = "  allocated tensors, layers not compiled; the driver's context and the allocator's reserve come on top (not measured)"
    return "\n".join([head, *lines, f"  {'peak':20} {memory.peak / MIB:10,.1f}", about])


def corpus_text(corpus: CorpusPlan) -> str:
    """One epoch in numbers, and how long sentences are."""
    figures = {
        "pairs": f"{corpus.pairs:,}", "source tokens": f"{corpus.src_tokens:,}", "target tokens": f"{corpus.tgt_tokens:,}",
        "micro-batches": f"{len(corpus.shapes):,}", "updates": f"{corpus.updates:,}", "padding": f"{corpus.padding:.1%}",
    }  # fmt: skip
    lines = [f"  {name:20} {value:>14}" for name, value in figures.items()]
    lines.append(f"  {'length':12} {'source':>10} {'':22} {'target':>10}")
    for name, *counts in corpus.histogram:
        src, tgt = (f"{count:10,} {'#' * round(20 * count / corpus.pairs):20}" for count in counts)
        lines.append(f"  {name:12} {src}   {tgt}".rstrip())
    return "\n".join(["An epoch (tokens and lengths with the end of sentence)", *lines])


def time_text(
    config: Config, prepared: Prepared, corpus: CorpusPlan, memory: MemoryPlan, compute: Compute
) -> str:
    """Time of an epoch and of the whole run, from real updates."""
    free = available_memory(compute.device)
    if memory.peak > free + resident_memory():
        return f"Time\n  not measured: the peak is above the {free / MIB:,.0f} MiB that are free; lower batching.max_tokens"
    done, rate = measure_speed(config, prepared, compute)
    epoch = corpus.tgt_tokens / rate
    spans = {"an epoch": epoch}
    if config.train.max_steps is not None:
        spans[f"{config.train.max_steps:,} updates"] = (
            epoch * config.train.max_steps / corpus.updates
        )
    if config.train.max_epochs is not None:
        spans[f"{config.train.max_epochs:,} epochs"] = epoch * config.train.max_epochs
    lines = [
        f"  {'target tokens/s':20} {rate:14,.0f}",
        *(f"  {name:20} {format_seconds(span):>14}" for name, span in spans.items()),
    ]
    about = f"  from {done} real updates after a first one, now, on {compute}; validation and saving come on top"
    return "\n".join(["Time", *lines, about])
