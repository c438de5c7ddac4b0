# ruff: noqa: E402
"""Check that training with mt's optimized operations learns as well as plain PyTorch in fp32.

Usage: python scripts/check/fast_path.py CONFIG [key=value ...] [--updates 300] [--seeds 1,2,3]
           [--json FILE]

The reference trains the same model on the same data in the same order, with PyTorch's own
operations in fp32: `F.dropout`, fused attention, `F.cross_entropy` with label smoothing over all
logits, `clip_grad_norm_`, and an AdamW that is not fused. mt and the reference draw different
dropout masks, so their losses should differ only as much as the losses of two seeds do. The table
shows the difference between the mean losses next to the spread over seeds.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # must run before PyTorch is imported, as in the `mt` command

import argparse
import contextlib
import json
import logging
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

from plain_pytorch import PLAIN, plain_pytorch
from rich.console import Console
from rich.table import Table

from mt.config import Config, load_config
from mt.data.prepare import Prepared, prepare
from mt.runtime.device import set_up_compute
from mt.train.trainer import trial

WINDOW = 50  # updates per point of the loss curve
KINDS = PLAIN.keys() - {"allocator"}  # the allocator does not affect the numbers


def curve(
    config: Config, prepared: Prepared, updates: int, plain: bool
) -> tuple[list[float], float]:
    """Train once. Returns (mean nll of each window of updates, target tokens/s)."""
    compute = set_up_compute(
        config.device, "fp32" if plain else config.precision, config.threads, for_training=True
    )
    with (
        plain_pytorch(KINDS) if plain else contextlib.nullcontext(),
        trial(config, prepared, compute) as trainer,
    ):
        losses, tokens, start = [], 0, time.perf_counter()
        with contextlib.closing(trainer.loader.updates()) as stream:  # type: ignore[type-var]
            for _ in range(updates):
                update = next(stream)
                losses.append(trainer.train_step(update).read().nll)
                tokens += update.num_tokens
        rate = tokens / (time.perf_counter() - start)
    windows = [losses[first : first + WINDOW] for first in range(0, updates, WINDOW)]
    return list(map(statistics.fmean, windows)), rate


def main() -> None:
    """Train both ways with each seed, and print the loss curves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    curves: dict[str, list[list[float]]] = {"ours": [], "plain": []}
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for seed in args.seeds.split(","):
        config = load_config(args.config, [*args.overrides, f"seed={seed}"])
        prepared = prepare(config)
        for name in curves:
            points, rate = curve(config, prepared, args.updates, plain=name == "plain")
            curves[name].append(points)
            rates[name].append(rate)
    table = Table(title=f"nll per target token, mean (and range) over seeds {args.seeds}")
    measures = ("difference of means", "spread over seeds")
    for column in ("updates", "ours (mt)", "plain fp32 PyTorch", *measures):
        table.add_column(column, justify="right")
    for index in range(len(curves["plain"][0])):
        mt, plain = ([points[index] for points in curves[name]] for name in curves)
        cells = (f"{statistics.fmean(x):.4f} ({min(x):.4f}-{max(x):.4f})" for x in (mt, plain))
        spread = max(max(mt) - min(mt), max(plain) - min(plain))
        first = index * WINDOW + 1
        table.add_row(
            f"{first}-{first + WINDOW - 1}",
            *cells,
            f"{statistics.fmean(mt) - statistics.fmean(plain):+.4f}",
            f"{spread:.4f}",
        )
    Console().print(table)
    for name, values in rates.items():
        Console().print(f"{name}: {statistics.median(values):,.0f} target tokens/s (median)")
    if args.json is not None:
        args.json.write_text(
            json.dumps({"curves": curves, "rates": rates}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
