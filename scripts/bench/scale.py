"""What it costs to train on several ranks, and whether order and seek hold at 10^9 pairs.

Usage: torchrun --standalone --nproc-per-node 2 scripts/bench/scale.py exchange [--preset base]
[--engine ddp] [--tokens 2048]
       torchrun --standalone --nproc-per-node 2 scripts/bench/scale.py checkpoint [--preset base]
       [--engine fsdp] [--folder DIR] python scripts/bench/scale.py order [--pairs 1000000000]
       [--folder DIR] python scripts/bench/scale.py cache FOLDER_OF_A_TOKEN_CACHE ...

The first two run as well under plain python (one rank), on GPUs and on many nodes; times are
medians over `--rounds`.
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
from mt.files import fsync_folder, sha256_file
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute, set_up_compute
from mt.runtime.memory import peak_process_memory
from mt.runtime.shards import is_sharded, load_shards, own_shard
from mt.runtime.world import World, joined
from mt.train.objective import TrainingLoss
from mt.train.optimizer import build_optimizer, optimizer_tensors, prepare_optimizer

VOCAB = 32_000
MIB = 1 << 20


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("exchange", "checkpoint", "order", "cache"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--engine", default="ddp", choices=("ddp", "fsdp"))
    parser.add_argument(
        "--tokens", type=int, default=2048, help="source, and target, tokens of a micro-batch"
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
            with joined(600.0) as world:
                compute = set_up_compute(
                    world.device_for_rank("auto"), "auto", None, for_training=True
                )
                {"exchange": exchange, "checkpoint": checkpoint}[args.what](
                    args, world, compute, Path(folder)
                )


def built(
    args: argparse.Namespace, world: World, compute: Compute
) -> tuple[Transformer, nn.Module, torch.optim.Optimizer]:
    """(model, what to call, optimizer) as a trainer has them."""
    config = ModelConfig(preset=args.preset, **PRESETS[args.preset])
    model = build_model(config, VOCAB, VOCAB, 1).train()
    layers = [*model.encoder.layers, *model.decoder.layers]
    wrapped = world.wrap(TrainingLoss(model, 0.1), args.engine, layers, compute.device)
    return model, wrapped, build_optimizer(model, OptimConfig(), compute.device)


def timed(work: Callable[[], object], compute: Compute) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    if compute.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def agree(world: World, compute: Compute) -> None:
    """The small calls of an update: its numbers, and signals."""
    world.all_reduce_sum(torch.zeros(2, device=compute.device))
    world.all_reduce_max(0)


def say(world: World, text: str) -> None:
    """Print on the first rank."""
    if world.is_rank0:
        print(text, flush=True)


def exchange(args: argparse.Namespace, world: World, compute: Compute, folder: Path) -> None:
    """A micro-batch with and without the exchange of gradients, an optimizer step, and the small
    calls of an update.
    """
    model, wrapped, optimizer = built(args, world, compute)
    num_parameters = sum(p.numel() for p in model.parameters())
    batch = to_device(
        empty_batch((args.tokens // 32, 32, 32), torch.device("cpu"), packed=False), compute.device
    )

    def micro_batch(is_last: bool) -> None:
        with world.gradient_sync(wrapped, is_last), compute.autocast():
            wrapped(batch).smoothed.backward()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    times: dict[str, list[float]] = {"alone": [], "exchanged": [], "step": [], "agree": []}
    for _ in range(args.rounds + 1):
        times["alone"].append(timed(lambda: micro_batch(is_last=False), compute))
        step()  # leaves no gradients to add to
        times["exchanged"].append(timed(lambda: micro_batch(is_last=True), compute))
        times["step"].append(timed(step, compute))
        times["agree"].append(timed(lambda: agree(world, compute), compute))
    alone, exchanged, stepped, agreed = (
        1000 * statistics.median(values[1:]) for values in times.values()
    )
    where = f"{world.size} ranks, {args.engine}, {compute}, preset {args.preset}: {num_parameters / 1e6:.1f} M parameters"
    say(
        world,
        f"{where}, {args.tokens} + {args.tokens} tokens a micro-batch, medians of {args.rounds}",
    )
    if args.engine == "ddp":
        say(
            world,
            f"  micro-batch without exchange {alone:,.0f} ms, with {exchanged:,.0f} ms: {exchanged - alone:+,.0f} ms",
        )
    else:
        say(world, f"  micro-batch {exchanged:,.0f} ms")
    say(world, f"  optimizer step {stepped:,.0f} ms; loss, numbers and signals {agreed:.2f} ms")
    peak = (
        torch.cuda.max_memory_allocated()
        if compute.device.type == "cuda"
        else peak_process_memory()
    )
    say(world, f"  peak memory of rank 0: {peak / MIB:,.0f} MiB")


def checkpoint(args: argparse.Namespace, world: World, compute: Compute, folder: Path) -> None:
    """Weights and optimizer state onto the disk and back: by all ranks, or in one file where there
    is one.
    """
    model, _, optimizer = built(args, world, compute)
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
        world.all_reduce_sum(torch.zeros(1, device=compute.device))  # all have read it
        world.broadcast_from_rank0(lambda: shutil.rmtree(place))  # noqa: B023
    seconds = {name: statistics.median(values) for name, values in times.items()}
    held = sum(own_shard(tensor).nbytes for tensor in tensors.values())
    what = f"{size / MIB:,.0f} MiB in {len(files)} files, medians of {args.rounds}"
    say(world, f"{world.size} ranks, {args.engine}, preset {args.preset}: {what}")
    say(
        world,
        "  "
        + ", ".join(
            f"{name} {value:.2f} s ({size / MIB / value:,.0f} MiB/s)"
            for name, value in seconds.items()
        ),
    )
    say(world, f"  weights and optimizer state in memory: {held / MIB:,.0f} MiB a rank")


def save(world: World, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """As a checkpoint does, forced to the disk: by the first rank, or by all where they have shared
    the tensors out.
    """

    def whole() -> None:
        save_file(tensors, folder / "all.safetensors")
        with (folder / "all.safetensors").open("rb") as file:
            os.fsync(file.fileno())
        fsync_folder(folder)

    if any(map(is_sharded, tensors.values())):
        world.save_shards(tensors, folder)
    else:
        world.broadcast_from_rank0(whole)


def order(num_pairs: int, folder: Path) -> None:
    """The order of an epoch and the way to any place in it, over a token cache whose offsets are
    real and whose tokens are all zero.
    """
    began = time.perf_counter()
    total = 0
    for side in SIDES:
        total = write_offsets(folder / f"{side}.offsets.bin", num_pairs)
        with (folder / f"{side}.tokens.bin").open("wb") as file:
            file.truncate(2 * total)
    about = {
        "format": 1,
        "dtype": "uint16",
        "pairs": num_pairs,
        "tokens": dict.fromkeys(SIDES, total),
    }
    (folder / "manifest.json").write_text(json.dumps(about))
    print(
        f"{num_pairs:,} pairs, {total:,} tokens a side; offsets written in {time.perf_counter() - began:,.0f} s"
    )
    os.sync()
    time.sleep(20)  # until the disk has settled
    chance = np.random.default_rng(1)
    first, seek = [], []
    for epoch in range(20):
        began = time.perf_counter()
        loader = TrainLoader(TokenCache(folder), BatchingConfig(), seed=1, batch_tokens=25_000)
        next(iter(loader.epoch_updates(epoch)))
        first.append(time.perf_counter() - began)
        del loader
        forget_pages(folder)
        began = time.perf_counter()
        loader = TrainLoader(TokenCache(folder), BatchingConfig(), seed=1, batch_tokens=25_000)
        block = int(chance.integers(num_pairs // loader.config.block_size))
        loader.load_state_dict({"epoch": epoch, "block": block, "bucket": 7})
        updates = loader.updates()
        next(updates)
        seek.append(time.perf_counter() - began)
        updates.close()  # type: ignore[attr-defined]
        del loader, updates
        forget_pages(folder)
    for what, seconds in (
        ("an epoch put in order, its first update drawn", first),
        ("gone to a random block, an update made", seek),
    ):
        print(
            f"  cache opened, {what}: {statistics.median(seconds):.2f} s (median of {len(seconds)}), {max(seconds):.2f} s at most"
        )
    print(f"  peak memory {peak_process_memory() / MIB:,.0f} MiB")


def write_offsets(path: Path, num_pairs: int) -> int:
    """Offsets of sentences of 1 to 59 tokens, 30 on average; gives where the last one ends."""
    chance, end = np.random.default_rng(0), 0
    with path.open("wb") as file:
        file.write(np.zeros(1, np.uint64).tobytes())
        for start in range(0, num_pairs, 1 << 24):
            offsets = np.cumsum(
                chance.integers(1, 60, min(1 << 24, num_pairs - start), np.uint64)
            ) + np.uint64(end)
            file.write(offsets.tobytes())
            end = int(offsets[-1])
    return end


def forget_pages(folder: Path) -> None:
    """Let the system drop what it has read of these files, so that the next look goes to the disk."""
    for path in folder.glob("*.bin"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cache(folders: list[Path]) -> None:
    """Bytes a pair of real token caches."""
    for folder in folders:
        about = json.loads((folder / "manifest.json").read_text())
        size = sum(path.stat().st_size for path in folder.iterdir())
        tokens = sum(about["tokens"].values()) / about["pairs"]
        print(
            f"{', '.join(about['corpora'])}: {about['pairs']:,} pairs, {tokens:.1f} tokens and {size / about['pairs']:.1f} bytes a pair"
        )


if __name__ == "__main__":
    main()
