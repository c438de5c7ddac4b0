# ruff: noqa: E402
"""What each change to the training step gains: target tokens/s with PyTorch's own operation in its
place, one at a time.

Usage: python scripts/bench/ablate.py CONFIG [key=value ...] [--rounds 3] [--updates 10]

Every measurement is a process of its own, and each round measures every variant once, so that a
slow minute of the machine falls on all.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # before PyTorch loads, as the command `mt` does

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

WARMUP = 3
VARIANTS = {"mt": (), **{kind: (kind,) for kind in PLAIN}, "all of these": tuple(PLAIN)}


def rate(config_path: str, overrides: list[str], kinds: tuple[str, ...], num_updates: int) -> float:
    """Target tokens/s of a few updates."""
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
    """Measure every variant in turn, and print medians of ratios."""
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
            command = [
                sys.executable,
                __file__,
                args.config,
                *args.overrides,
                "--updates",
                str(args.updates),
                "--one",
                name,
            ]
            measured.append(
                float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            )
    table = Table(
        "PyTorch's own",
        "target tokens/s, by round",
        "mt is, median",
        title=f"{args.config} {' '.join(args.overrides)}",
    )
    for name, measured in rates.items():
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(rates["mt"], measured, strict=True)
        )
        table.add_row(name, ", ".join(f"{value:,.0f}" for value in measured), f"{ratio:.2f} times")
    Console().print(table)


if __name__ == "__main__":
    main()
