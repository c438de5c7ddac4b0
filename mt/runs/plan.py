"""The plan of a run, which `mt train FILE --plan` prints: parameters, memory, data and time."""

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
    """The size of one epoch of training data. Token counts include end-of-sentence tokens."""

    pairs: int
    src_tokens: int
    tgt_tokens: int
    updates: int
    shapes: IntArray  # [micro-batches, 3]: rows, source width, target width
    micro_batches: int  # maximum per update
    # One row per range of lengths: (range, source sentences in it, target sentences in it).
    histogram: list[tuple[str, int, int]]

    @property
    def padding(self) -> float:
        """The share of padding in all positions, if micro-batches are padded."""
        rows, src, tgt = self.shapes.T
        return 1 - (self.src_tokens + self.tgt_tokens) / int((rows * (src + tgt)).sum())


def plan_corpus(loader: TrainLoader) -> CorpusPlan:
    """Compute the plan of the first epoch from sentence lengths, without reading tokens."""
    edges = np.array([*LENGTH_EDGES, np.iinfo(np.int64).max])
    shapes, updates, largest = [], 0, 0
    tokens, counts = np.zeros(2, np.int64), np.zeros((2, len(edges)), np.int64)
    for update in loader.epoch_updates():
        updates, largest = updates + 1, max(largest, len(update))
        for indices in update:
            lengths = np.stack(loader.cache.lengths(indices)) + 1
            shapes.append((len(indices), *lengths.max(axis=1)))
            tokens += lengths.sum(axis=1)
            for count, lens in zip(counts, lengths, strict=True):
                count += np.bincount(np.searchsorted(edges, lens), minlength=len(edges))
    starts = (1, *(edge + 1 for edge in LENGTH_EDGES))
    names = [f"{start} to {edge}" for start, edge in zip(starts, LENGTH_EDGES, strict=False)]
    names.append(f"over {LENGTH_EDGES[-1]}")
    histogram = [(name, int(src), int(tgt)) for name, src, tgt in zip(names, *counts, strict=True)]
    src_tokens, tgt_tokens = tokens.tolist()
    return CorpusPlan(
        len(loader.cache), src_tokens, tgt_tokens, updates, np.array(shapes), largest, histogram
    )


def parameters_by_block(model: Transformer) -> dict[str, int]:
    """Return the number of parameters per block.

    If several blocks share a matrix, it is counted in the first of them.
    """
    encoder, decoder = model.encoder, model.decoder
    output = (p for name, p in model.named_parameters() if name.startswith("output_"))
    blocks: dict[str, torch.nn.Module] = {
        "source embedding": encoder.embed_tokens,
        "target embedding": decoder.embed_tokens,
        "encoder layers": torch.nn.ModuleList([*encoder.layers, encoder.layer_norm]),
        "decoder layers": torch.nn.ModuleList([*decoder.layers, decoder.layer_norm]),
        "output projection": torch.nn.ParameterList(output),
    }
    counted: set[torch.Tensor] = set()
    counts = {}
    for name, block in blocks.items():
        new = set(block.parameters()) - counted
        counted |= new
        counts[name] = sum(p.numel() for p in new)
    return counts


def measure_speed(config: Config, prepared: Prepared, compute: Compute) -> tuple[int, float]:
    """Train for some updates, and return (number of updates, target tokens per second).

    The first update is a warm-up and is not measured. The trained weights are not used.
    """
    tokens, measured, start = 0, -1, 0.0
    with (
        trial(config, prepared, compute) as trainer,
        contextlib.closing(trainer.loader.updates()) as updates,  # type: ignore[type-var]
    ):
        for update in updates:
            trainer.train_step(update).read()
            measured += 1
            if measured == 0:
                start = time.perf_counter()
                continue
            tokens += update.num_tokens
            seconds = time.perf_counter() - start
            if measured == MEASURE_UPDATES or seconds > MEASURE_SECONDS:
                return measured, tokens / seconds
    raise AssertionError("updates never end")


def plan(config: Config) -> str:
    """Return the whole plan as text.

    Prepares the data, and trains some updates to measure the speed, but writes nothing into the
    run folder. Raises the same errors as training would.
    """
    config, _ = with_initial_model(config)
    train = config.train
    compute = set_up_compute(
        config.device,
        config.precision,
        config.threads,
        for_training=True,
        deterministic=train.deterministic,
    ).set_process_threads()
    # This is measured first, because preparing the data would add to it.
    process = process_memory(config, compute) if compute.device.type == "cpu" else 0
    prepared = prepare(config)
    if config.batching.max_tokens == AUTO:
        config = with_max_tokens(config, find_max_tokens(config, prepared, compute))
    vocab_sizes = prepared.tokenizer.vocab_sizes
    loader = TrainLoader(
        prepared.train,
        config.batching,
        config.seed,
        grad_accum_steps=train.grad_accum_steps,
        batch_tokens=train.batch_tokens,
    )
    corpus = plan_corpus(loader)
    memory = plan_memory(config, vocab_sizes, corpus.shapes, corpus.micro_batches, compute, process)
    parts = [
        parameters_text(config.model, vocab_sizes),
        memory_text(memory, compute),
        corpus_text(corpus),
        time_text(config, prepared, corpus, memory, compute),
    ]
    return "\n\n".join(parts)


def parameters_text(config: ModelConfig, vocab_sizes: tuple[int, int]) -> str:
    """Return the section about parameters: the number per block, and the total."""
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
    """Return the section about memory: what memory is used for at the peak."""
    rows, src, tgt = memory.shape
    lines = [
        f"Memory at the peak, in MiB ({compute})",
        *(f"  {name:20} {size / MIB:10,.1f}" for name, size in memory.kinds.items()),
        f"  {'peak':20} {memory.peak / MIB:10,.1f}",
        f"  the largest micro-batch has {rows} rows, source width {src} and target width {tgt}",
    ]
    if compute.device.type == "cpu":
        lines += [
            "  heap fragmentation and oneDNN kernels are estimated, Python and libraries are",
            "  measured, everything else is counted; preparing the data is not included",
        ]
    else:
        lines += [
            "  everything is counted, for layers that are not compiled; the CUDA context and the",
            "  allocator's reserve are not included",
        ]
    return "\n".join(lines)


def corpus_text(corpus: CorpusPlan) -> str:
    """Return the section about the data, with the size of one epoch and a length histogram."""
    figures = {
        "pairs": f"{corpus.pairs:,}",
        "source tokens": f"{corpus.src_tokens:,}",
        "target tokens": f"{corpus.tgt_tokens:,}",
        "micro-batches": f"{len(corpus.shapes):,}",
        "updates": f"{corpus.updates:,}",
        "padding": f"{corpus.padding:.1%}",
    }
    lines = [f"  {name:20} {value:>14}" for name, value in figures.items()]
    lines.append(f"  {'length':12} {'source':>10} {'':22} {'target':>10}")
    for name, *counts in corpus.histogram:
        src, tgt = (f"{count:10,} {'#' * round(20 * count / corpus.pairs):20}" for count in counts)
        lines.append(f"  {name:12} {src}   {tgt}".rstrip())
    return "\n".join(["One epoch (tokens and lengths include the end-of-sentence token)", *lines])


def time_text(
    config: Config, prepared: Prepared, corpus: CorpusPlan, memory: MemoryPlan, compute: Compute
) -> str:
    """Return the section about time, measured with real updates if they fit into memory."""
    free = available_memory(compute.device)
    if memory.peak > free + resident_memory():
        return (
            f"Time\n  not measured: only {free / MIB:,.0f} MiB of memory are free, "
            "less than the peak needs; lower batching.max_tokens"
        )
    measured, rate = measure_speed(config, prepared, compute)
    epoch = corpus.tgt_tokens / rate
    train, spans = config.train, {"one epoch": epoch}
    if train.max_steps is not None:
        spans[f"{train.max_steps:,} updates"] = epoch * train.max_steps / corpus.updates
    if train.max_epochs is not None:
        spans[f"{train.max_epochs:,} epochs"] = epoch * train.max_epochs
    lines = [
        "Time",
        f"  {'target tokens/s':20} {rate:14,.0f}",
        *(f"  {name:20} {format_seconds(span):>14}" for name, span in spans.items()),
        f"  measured over {measured} updates on {compute}, after a warm-up; validation and",
        "  saving checkpoints are not included",
    ]
    return "\n".join(lines)
