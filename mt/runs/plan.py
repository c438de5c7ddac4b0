"""What a run will take, before it begins: parameters, memory, corpus and time."""

import contextlib
import time
from dataclasses import dataclass

import numpy as np
import torch

from mt.config import AUTO, Config, ModelConfig
from mt.data.batch import IntArray
from mt.data.order import TrainLoader
from mt.data.prepare import Prepared, prepare
from mt.log import format_seconds
from mt.model.transformer import Transformer
from mt.runs.autobatch import find_max_tokens, with_max_tokens
from mt.runs.footprint import MemoryPlan, plan_memory, process_memory, resident_memory
from mt.runs.resolve import with_initial_model
from mt.runtime.device import Compute, set_up_compute
from mt.runtime.memory import available_memory
from mt.train.trainer import trial

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
    """(updates, target tokens a second) of real updates after a first one; the model is thrown
    away.
    """
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
    """The whole plan as text; prepares the data, writes nothing into the run folder. Raises
    `MTError` as training would.
    """
    config, _ = with_initial_model(config)
    deterministic = config.train.deterministic
    compute = set_up_compute(
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
    memory = plan_memory(config, vocab_sizes, corpus.shapes, corpus.micro_batches, compute, process)
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
