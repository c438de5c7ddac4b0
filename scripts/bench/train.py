# ruff: noqa: E402
"""Measure the training speed of a configuration: target tokens/s, time per part, and peak memory.

Usage: python scripts/bench/train.py CONFIG [key=value ...] [--updates 30] [--warmup 5]
           [--repeat 3] [--json FILE]

A first pass measures speed without interference; a second pass times the parts of each update.
Target tokens are counted without padding. Nothing is validated or saved.

Utilisation is the FLOP/s of training divided by the FLOP/s of the fastest matrix product on this
device. Per target token, training takes 6 FLOP for each parameter in the encoder, decoder and
projection matrices. This assumes one source token per target token, and ignores attention. The
matrix products are 4096 x n by n x n with n from 256 to 2048, in bf16 and fp32. They are measured
in the same run.

Machines are noisy: quote medians, and only ratios from the same run.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # must run before PyTorch is imported, as in the `mt` command

import argparse
import contextlib
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mt.config import load_config
from mt.data.batch import Batch
from mt.data.order import Update
from mt.data.prepare import prepare
from mt.model.transformer import Transformer
from mt.runtime.device import Compute, set_up_compute
from mt.runtime.memory import peak_process_memory
from mt.train.trainer import Trainer, trial

PARTS = ("forward", "backward", "optimize")


def synchronize(compute: Compute) -> None:
    """Wait until the device has finished all work."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def product_rate(compute: Compute, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Return the FLOP/s of the fastest product of a [4096, n] and an [n, n] matrix over several n.

    For each n, the median of several measurements counts.
    """
    rates = []
    for size in (256, 512, 1024, 2048):
        a = torch.randn(4096, size, device=compute.device).to(dtype)
        b = torch.randn(size, size, device=compute.device).to(dtype)
        times = [product_seconds(compute, a, b)]  # the first product is a warm-up
        end = time.perf_counter() + seconds
        while times[0] <= seconds and (len(times) < 4 or time.perf_counter() < end):
            times.append(product_seconds(compute, a, b))
        rates.append(2 * 4096 * size * size / statistics.median(times[1:] or times))
        if times[0] > seconds:
            break  # the hardware does not support this dtype; larger products only take longer
    return max(rates)


def product_seconds(compute: Compute, a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the seconds that `a @ b` takes."""
    synchronize(compute)
    start = time.perf_counter()
    torch.mm(a, b)
    synchronize(compute)
    return time.perf_counter() - start


def matrix_parameters(model: Transformer) -> int:
    """Count the parameters of all matrices that a token is multiplied with.

    These are the matrices of the layers and the output projection, but not the embeddings.
    """
    layers = sum(
        p.numel()
        for stack in (model.encoder.layers, model.decoder.layers)
        for p in stack.parameters()
        if p.ndim == 2
    )
    return layers + model.output_weight.numel()


def padding(updates: list[Update]) -> float:
    """Return which share of all source and target positions is padding."""
    real = total = 0
    for batch in (batch for update in updates for batch in update.micro_batches):
        if isinstance(batch, Batch):
            real += int(batch.src_mask.sum()) + batch.num_tokens
            total += batch.src.numel() + batch.tgt_in.numel()
    return 1 - real / total if total else 0.0


def speed(trainer: Trainer, next_update: Callable[[], Update], count: int) -> tuple[float, float]:
    """Train for `count` updates. Returns (target tokens/s, share of time waiting for data)."""
    tokens, data_seconds = 0, 0.0
    synchronize(trainer.compute)
    start = time.perf_counter()
    for _ in range(count):
        before = time.perf_counter()
        update = next_update()
        data_seconds += time.perf_counter() - before
        trainer.train_step(update)
        tokens += update.num_tokens
    synchronize(trainer.compute)
    seconds = time.perf_counter() - start
    return tokens / seconds, data_seconds / seconds


def parts(trainer: Trainer, next_update: Callable[[], Update], count: int) -> dict[str, float]:
    """Return the share of the time that each part of an update takes.

    The device is synchronized after each part.
    """
    seconds = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            synchronize(trainer.compute)
            start = time.perf_counter()
            result = function(*args)
            synchronize(trainer.compute)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    for name in PARTS:
        setattr(trainer, name, timed(name, getattr(trainer, name)))
    start = time.perf_counter()
    for _ in range(count):
        trainer.train_step(next_update())
    total = time.perf_counter() - start
    for name in PARTS:
        delattr(trainer, name)
    return {name: value / total for name, value in seconds.items()}


def peak_memory(compute: Compute) -> float:
    """Return the peak GiB of tensors on a GPU, or of the whole process on a CPU."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device) / 2**30
    return peak_process_memory() / 2**30


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything for one configuration."""
    config = load_config(args.config, args.overrides)
    compute = set_up_compute(
        config.device,
        config.precision,
        config.threads,
        for_training=True,
        deterministic=config.train.deterministic,
    )
    prepared = prepare(config)
    with (
        trial(config, prepared, compute) as trainer,
        contextlib.closing(trainer.loader.updates()) as updates,
    ):  # type: ignore[type-var]
        for _ in range(args.warmup):
            trainer.train_step(next(updates))
        speeds = [speed(trainer, lambda: next(updates), args.updates) for _ in range(args.repeat)]
        shares = parts(trainer, lambda: next(updates), max(3, args.updates // 3))
        sample = [next(updates) for _ in range(args.updates)]
    rate = statistics.median(tokens for tokens, _ in speeds)
    flop = 6 * matrix_parameters(trainer.model)
    products = {
        name: product_rate(compute, dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return {
        "config": str(args.config),
        "overrides": args.overrides,
        "compute": str(compute),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "target_tokens_per_second": rate,
        "runs": [tokens for tokens, _ in speeds],
        "padding": padding(sample),
        "shares": {"data": statistics.median(data for _, data in speeds), **shares},
        "mflop_per_token": flop / 1e6,
        "product_gflops": {name: value / 1e9 for name, value in products.items()},
        "utilisation": rate * flop / max(products.values()),
        "peak_memory_gib": peak_memory(compute),
    }


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    table = Table(
        title=f"{result['config']} {' '.join(result['overrides'])}\n{result['compute']}",
        show_header=False,
    )
    runs = result["runs"]
    spread = f"median of {len(runs)}, {min(runs):,.0f} to {max(runs):,.0f}"
    table.add_row("target tokens/s", f"{result['target_tokens_per_second']:,.0f} ({spread})")
    table.add_row("padding", f"{result['padding']:.1%} of all positions")
    table.add_row(
        "time", ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items())
    )
    products = ", ".join(f"{name} {rate:,.0f}" for name, rate in result["product_gflops"].items())
    table.add_row("matrix products", f"{products} GFLOP/s")
    cost = f"{result['mflop_per_token']:.1f} MFLOP per token"
    table.add_row("utilisation", f"{result['utilisation']:.0%} of the fastest product, at {cost}")
    table.add_row("peak memory", f"{result['peak_memory_gib']:.2f} GiB")
    Console().print(table)


def main() -> None:
    """Measure, print the result, and write it to --json if given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    result = measure(args)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
