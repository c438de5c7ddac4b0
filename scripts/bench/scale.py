"""Measure what training on several ranks and on very large corpora costs.

Usage: torchrun --standalone --nproc-per-node 2 scripts/bench/scale.py exchange
           [--preset base] [--engine ddp] [--tokens 2048] [--rounds 7]
       torchrun --standalone --nproc-per-node 2 scripts/bench/scale.py checkpoint
           [--preset base] [--engine fsdp] [--folder DIR] [--rounds 7]
       python scripts/bench/scale.py order [--pairs 1000000000] [--folder DIR]
       python scripts/bench/scale.py cache FOLDER_OF_A_TOKEN_CACHE ...

exchange times a micro-batch with and without the gradient exchange, and an optimizer step.
checkpoint times saving, hashing and loading weights and optimizer state.
order times the start of an epoch of 10^9 pairs, and a seek to a place within an epoch.
cache prints the bytes per pair of existing token caches.

exchange and checkpoint also run without torchrun (as one rank), on GPUs and on several nodes. Their
times are medians over --rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from mt.config import PRESETS, BatchingConfig, ModelConfig, OptimConfig
from mt.data.batch import empty_batch, to_device
from mt.data.order import TrainLoader
from mt.data.store import SIDES, TokenCache
from mt.files import flush_to_disk, sha256_file
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute, set_up_compute
from mt.runtime.memory import peak_process_memory
from mt.runtime.shards import is_sharded, load_shards, local_shard
from mt.runtime.world import World, join_world
from mt.train.objective import TrainingLoss
from mt.train.optimizer import build_optimizer, optimizer_tensors, prepare_optimizer

VOCAB = 32_000
MIB = 1 << 20


def main() -> None:
    """Run the chosen measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("exchange", "checkpoint", "order", "cache"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--engine", default="ddp", choices=("ddp", "fsdp"))
    parser.add_argument(
        "--tokens", type=int, default=2048, help="source tokens (and target tokens) per micro-batch"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=10**9)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.what == "order":
            order(args.pairs, Path(folder))
        elif args.what == "cache":
            cache(args.folders)
        else:
            with join_world(600.0) as world:
                compute = set_up_compute(
                    world.device_for_rank("auto"), "auto", None, for_training=True
                )
                {"exchange": exchange, "checkpoint": checkpoint}[args.what](
                    args, world, compute, Path(folder)
                )


def build(
    args: argparse.Namespace, world: World, compute: Compute
) -> tuple[Transformer, nn.Module, torch.optim.Optimizer]:
    """Build (model, the wrapped loss module to call, optimizer) as the trainer does."""
    config = ModelConfig(preset=args.preset, **PRESETS[args.preset])
    model = build_model(config, VOCAB, VOCAB, 1).train()
    layers = [*model.encoder.layers, *model.decoder.layers]
    wrapped = world.wrap(TrainingLoss(model, 0.1), args.engine, layers, compute.device)
    return model, wrapped, build_optimizer(model, OptimConfig(), compute.device)


def timed(work: Callable[[], object], compute: Compute) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reduce_numbers(world: World, compute: Compute) -> None:
    """Run the small collectives of an update, which exchange the loss and signals."""
    world.all_reduce_sum(torch.zeros(2, device=compute.device))
    world.all_reduce_max(0)


def print_on_rank0(world: World, text: str) -> None:
    """Print on rank 0 only."""
    if world.is_rank0:
        print(text, flush=True)


def exchange(args: argparse.Namespace, world: World, compute: Compute, folder: Path) -> None:
    """Time a micro-batch with and without the gradient exchange, and the rest of an update."""
    model, wrapped, optimizer = build(args, world, compute)
    num_parameters = sum(p.numel() for p in model.parameters()) / 1e6
    batch = to_device(
        empty_batch((args.tokens // 32, 32, 32), torch.device("cpu"), packed=False), compute.device
    )

    def micro_batch(is_last: bool) -> None:
        with world.gradient_sync(wrapped, is_last), compute.autocast():
            wrapped(batch).smoothed.backward()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"alone": [], "exchanged": [], "step": [], "reduce": []}
    for _ in range(args.rounds + 1):  # the first round is a warm-up
        times["alone"].append(timed(lambda: micro_batch(is_last=False), compute))
        step()  # clears the gradients
        times["exchanged"].append(timed(lambda: micro_batch(is_last=True), compute))
        times["step"].append(timed(step, compute))
        times["reduce"].append(timed(lambda: reduce_numbers(world, compute), compute))
    alone, exchanged, stepped, reduced = (
        1000 * statistics.median(values[1:]) for values in times.values()
    )
    peak = (
        torch.cuda.max_memory_allocated()
        if compute.device.type == "cuda"
        else peak_process_memory()
    )
    micro_batch_time = f"{exchanged:,.0f} ms"
    if args.engine == "ddp":
        difference = f"{exchanged - alone:+,.0f} ms"
        micro_batch_time += f" with exchange, {alone:,.0f} ms without ({difference})"
    print_on_rank0(
        world,
        f"{world.size} ranks, {args.engine}, {compute}, preset {args.preset}: "
        f"{num_parameters:.1f} M parameters, {args.tokens} + {args.tokens} tokens per micro-batch, "
        f"medians of {args.rounds}\n  micro-batch {micro_batch_time}\n"
        f"  optimizer step {stepped:,.0f} ms; loss, numbers and signals {reduced:.2f} ms\n"
        f"  peak memory of rank 0: {peak / MIB:,.0f} MiB",
    )


def checkpoint(args: argparse.Namespace, world: World, compute: Compute, folder: Path) -> None:
    """Time saving, hashing and loading the weights and the optimizer state.

    If the tensors are sharded, each rank saves its shards. Otherwise rank 0 saves one file.
    """
    model, _, optimizer = build(args, world, compute)
    prepare_optimizer(optimizer)
    tensors = {
        **{name: p.detach() for name, p in model.named_parameters()},
        **optimizer_tensors(optimizer, model),
    }
    times: dict[str, list[float]] = {"save": [], "hash": [], "load": []}
    size = 0
    for number in range(args.rounds):
        place = Path(world.broadcast_from_rank0(lambda: str(folder))) / str(number)
        world.broadcast_from_rank0(lambda: place.mkdir())  # noqa: B023
        times["save"].append(timed(lambda: save(world, tensors, place), compute))  # noqa: B023
        files = sorted(place.iterdir())
        size = sum(path.stat().st_size for path in files)
        times["hash"].append(
            timed(
                lambda: world.broadcast_from_rank0(
                    lambda: [sha256_file(path) for path in files] and None  # noqa: B023
                ),
                compute,
            )
        )
        times["load"].append(timed(lambda: load_shards(tensors, place), compute))  # noqa: B023
        world.all_reduce_sum(torch.zeros(1, device=compute.device))  # wait for all ranks to load
        world.broadcast_from_rank0(lambda: shutil.rmtree(place))  # noqa: B023
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rates = ", ".join(
        f"{name} {value:.2f} s ({size / MIB / value:,.0f} MiB/s)" for name, value in seconds.items()
    )
    in_memory = sum(local_shard(tensor).nbytes for tensor in tensors.values())
    print_on_rank0(
        world,
        f"{world.size} ranks, {args.engine}, preset {args.preset}: "
        f"{size / MIB:,.0f} MiB in {len(files)} files, medians of {args.rounds}\n  {rates}\n"
        f"  weights and optimizer state in memory: {in_memory / MIB:,.0f} MiB per rank",
    )


def save(world: World, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Save the tensors in the same way as a checkpoint, and flush the files to disk."""

    def save_unsharded() -> None:
        save_file(tensors, folder / "all.safetensors")
        with (folder / "all.safetensors").open("rb") as file:
            os.fsync(file.fileno())
        flush_to_disk(folder)

    if any(map(is_sharded, tensors.values())):
        world.save_shards(tensors, folder)
    else:
        world.broadcast_from_rank0(save_unsharded)


def order(num_pairs: int, folder: Path) -> None:
    """Time the start of an epoch and a seek within it, on a token cache of `num_pairs` pairs.

    The cache has real offsets, but all its tokens are 0.
    """
    write_cache(num_pairs, folder)
    rng = np.random.default_rng(1)
    first_updates, seeks = [], []
    for epoch in range(20):
        start = time.perf_counter()
        loader = TrainLoader(TokenCache(folder), BatchingConfig(), seed=1, batch_tokens=25_000)
        next(iter(loader.epoch_updates(epoch)))
        first_updates.append(time.perf_counter() - start)
        del loader
        drop_cached_pages(folder)
        start = time.perf_counter()
        loader = TrainLoader(TokenCache(folder), BatchingConfig(), seed=1, batch_tokens=25_000)
        block = int(rng.integers(num_pairs // loader.config.block_size))
        loader.load_state_dict({"epoch": epoch, "block": block, "bucket": 7})
        updates = loader.updates()
        next(updates)
        seeks.append(time.perf_counter() - start)
        updates.close()  # type: ignore[attr-defined]
        del loader, updates
        drop_cached_pages(folder)
    for what, seconds in (
        ("ordering an epoch and making its first update", first_updates),
        ("seeking to a random block and making an update", seeks),
    ):
        median = f"{statistics.median(seconds):.2f} s (median of {len(seconds)})"
        print(f"  opening the cache, {what}: {median}, at most {max(seconds):.2f} s")
    print(f"  peak memory {peak_process_memory() / MIB:,.0f} MiB")


def write_cache(num_pairs: int, folder: Path) -> None:
    """Write a token cache, and wait until the disk is idle."""
    start = time.perf_counter()
    total = 0
    for side in SIDES:
        total = write_offsets(folder / f"{side}.offsets.bin", num_pairs)
        with (folder / f"{side}.tokens.bin").open("wb") as file:
            file.truncate(2 * total)
    manifest = {
        "format": 1,
        "dtype": "uint16",
        "pairs": num_pairs,
        "tokens": dict.fromkeys(SIDES, total),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    seconds = time.perf_counter() - start
    print(f"{num_pairs:,} pairs, {total:,} tokens per side; written in {seconds:,.0f} s")
    os.sync()
    time.sleep(20)


def write_offsets(path: Path, num_pairs: int) -> int:
    """Write offsets for sentences of 1 to 59 tokens (30 on average). Returns the last offset."""
    rng, end = np.random.default_rng(0), 0
    with path.open("wb") as file:
        file.write(np.zeros(1, np.uint64).tobytes())
        for start in range(0, num_pairs, 1 << 24):
            offsets = np.cumsum(
                rng.integers(1, 60, min(1 << 24, num_pairs - start), np.uint64)
            ) + np.uint64(end)
            file.write(offsets.tobytes())
            end = int(offsets[-1])
    return end


def drop_cached_pages(folder: Path) -> None:
    """Drop the files from the page cache, so that they are next read from the disk."""
    for path in folder.glob("*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cache(folders: list[Path]) -> None:
    """Print the bytes per pair of existing token caches."""
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        pairs = manifest["pairs"]
        size = sum(path.stat().st_size for path in folder.iterdir()) / pairs
        tokens = sum(manifest["tokens"].values()) / pairs
        names = ", ".join(manifest["corpora"])
        print(f"{names}: {pairs:,} pairs, {tokens:.1f} tokens and {size:.1f} bytes per pair")


if __name__ == "__main__":
    main()
