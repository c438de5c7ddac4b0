# ruff: noqa: E402
"""Measure the speedup that each optimization of the training step gives.

Usage: python scripts/bench/ablate.py CONFIG [key=value ...] [--rounds 3] [--updates 10]

One at a time, each optimization is replaced by PyTorch's own operation, and target tokens/s are
compared. Every measurement runs in a separate process. Each round measures every variant once, so
that a slow phase of the machine affects all variants alike.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # must run before PyTorch is imported, as in the `mt` command

import argparse
import contextlib
import logging
import statistics
import subprocess
import sys

from plain_pytorch import PLAIN, plain_pytorch
from rich.console import Console
from rich.table import Table
from train import speed

import mt.runtime.device as device_module
from mt.config import load_config
from mt.data.prepare import prepare
from mt.train.trainer import trial

WARMUP = 3  # updates before the measurement
VARIANTS = {"none": (), **{kind: (kind,) for kind in PLAIN}, "all of these": tuple(PLAIN)}


def rate(config_path: str, overrides: list[str], kinds: tuple[str, ...], num_updates: int) -> float:
    """Train briefly with PyTorch's own operations of the given kinds. Returns target tokens/s."""
    config = load_config(config_path, overrides)
    with plain_pytorch(kinds):
        compute = device_module.set_up_compute(
            config.device, config.precision, config.threads, for_training=True
        )
        with (
            trial(config, prepare(config), compute) as trainer,
            contextlib.closing(trainer.loader.updates()) as updates,
        ):  # type: ignore[type-var]
            for _ in range(WARMUP):
                trainer.train_step(next(updates))
            return speed(trainer, lambda: next(updates), num_updates)[0]


def main() -> None:
    """Measure every variant in each round, and print the median ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    if args.one:
        print(rate(args.config, args.overrides, VARIANTS[args.one], args.updates))
        return
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(args.rounds):
        for name, measured in rates.items():
            options = [*args.overrides, "--updates", str(args.updates), "--one", name]
            command = [sys.executable, __file__, args.config, *options]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            measured.append(float(result.stdout))
    table = Table(
        "replaced by PyTorch's own operation",
        "target tokens/s per round",
        "speedup of mt (median)",
        title=f"{args.config} {' '.join(args.overrides)}",
    )
    for name, measured in rates.items():
        ratio = statistics.median(
            mt / plain for mt, plain in zip(rates["none"], measured, strict=True)
        )
        table.add_row(name, ", ".join(f"{value:,.0f}" for value in measured), f"{ratio:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
