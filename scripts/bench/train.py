# ruff: noqa: E402
"""Training speed of a configuration: target tokens/s, where the time goes, how much of the machine
it uses, and peak memory.

Usage: python scripts/bench/train.py CONFIG [key=value ...] [--updates 30] [--warmup 5] [--repeat 3]
[--json FILE]

Target tokens are counted without padding. A first pass measures speed, undisturbed; a second one
times the parts of each update. Nothing is validated or saved. Utilisation is target tokens/s x 6 x
(parameters of encoder, decoder and projection matrices), which takes one source token for each
target token and leaves attention out, over the fastest matrix product of 4096 x n by n x n, n in
256 ... 2048, that this device does in the same run, in bf16 or in fp32. Quote medians, and ratios
within one run: machines are noisy.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # before PyTorch loads, as the command `mt` does

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


def wait(compute: Compute) -> None:
    """Until the device has done what it was asked."""
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)


def product_rate(compute: Compute, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square product over 4096 rows; the median of each size."""
    rates = []
    for size in (256, 512, 1024, 2048):
        a = torch.randn(4096, size, device=compute.device).to(dtype)
        b = torch.randn(size, size, device=compute.device).to(dtype)
        times, end = (
            [product_seconds(compute, a, b)],
            time.perf_counter() + seconds,
        )  # the first one warms up
        while times[0] <= seconds and (len(times) < 4 or time.perf_counter() < end):
            times.append(product_seconds(compute, a, b))
        rates.append(2 * 4096 * size * size / statistics.median(times[1:] or times))
        if times[0] > seconds:
            break  # this type has no hardware here, and larger products would only take longer
    return max(rates)


def product_seconds(compute: Compute, a: torch.Tensor, b: torch.Tensor) -> float:
    """Time of a @ b."""
    wait(compute)
    began = time.perf_counter()
    torch.mm(a, b)
    wait(compute)
    return time.perf_counter() - began


def matrix_parameters(model: Transformer) -> int:
    """Parameters that a token is multiplied with: layers and output projection, embeddings as such
    left out.
    """
    layers = sum(
        p.numel()
        for half in (model.encoder.layers, model.decoder.layers)
        for p in half.parameters()
        if p.ndim == 2
    )
    return layers + model.output_weight.numel()


def padding(updates: list[Update]) -> float:
    """The share of padding in the source and target positions of some updates."""
    real = whole = 0
    for batch in (batch for update in updates for batch in update.micro_batches):
        if isinstance(batch, Batch):
            real += int(batch.src_mask.sum()) + batch.num_tokens
            whole += batch.src.numel() + batch.tgt_in.numel()
    return 1 - real / whole if whole else 0.0


def speed(trainer: Trainer, next_update: Callable[[], Update], count: int) -> tuple[float, float]:
    """(target tokens/s, share of the time spent waiting for data) over `count` updates."""
    tokens, waited = 0, 0.0
    wait(trainer.compute)
    began = time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        update = next_update()
        waited += time.perf_counter() - asked
        trainer.train_step(update)
        tokens += update.num_tokens
    wait(trainer.compute)
    took = time.perf_counter() - began
    return tokens / took, waited / took


def parts(trainer: Trainer, next_update: Callable[[], Update], count: int) -> dict[str, float]:
    """The share of an update's time in each of its parts, the device waited for after each."""
    taken = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            wait(trainer.compute)
            began = time.perf_counter()
            result = function(*args)
            wait(trainer.compute)
            taken[name] += time.perf_counter() - began
            return result

        return call

    for name in PARTS:
        setattr(trainer, name, timed(name, getattr(trainer, name)))
    began = time.perf_counter()
    for _ in range(count):
        trainer.train_step(next_update())
    whole = time.perf_counter() - began
    for name in PARTS:
        delattr(trainer, name)
    return {name: seconds / whole for name, seconds in taken.items()}


def peak_memory(compute: Compute) -> float:
    """GiB: on a GPU what tensors took at most, on a CPU the whole process."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device) / 2**30
    return peak_process_memory() / 2**30


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All figures of one configuration."""
    config = load_config(args.config, args.overrides)
    deterministic = config.train.deterministic
    compute = set_up_compute(
        config.device,
        config.precision,
        config.threads,
        for_training=True,
        deterministic=deterministic,
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
        "config": str(args.config), "overrides": args.overrides, "compute": str(compute), "torch": torch.__version__,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "target_tokens_per_second": rate, "runs": [tokens for tokens, _ in speeds], "padding": padding(sample),
        "shares": {"data": statistics.median(waited for _, waited in speeds), **shares},
        "mflop_per_token": flop / 1e6, "product_gflops": {name: value / 1e9 for name, value in products.items()},
        "utilisation": rate * flop / max(products.values()), "peak_memory_gib": peak_memory(compute),
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
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
    table.add_row("fastest products", f"{products} GFLOP/s")
    table.add_row(
        "utilisation",
        f"{result['utilisation']:.0%} of the faster, at {result['mflop_per_token']:.1f} MFLOP a token",
    )
    table.add_row("peak memory", f"{result['peak_memory_gib']:.2f} GiB")
    Console().print(table)


def main() -> None:
    """Measure, print, and write JSON where asked."""
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
