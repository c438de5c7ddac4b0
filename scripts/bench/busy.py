"""Measure how training slows down while another process uses the CPU.

Usage: python scripts/bench/busy.py CONFIG [key=value ...] [--updates 6] [--rounds 3]
           [--try NAME=VALUE ...]

Target tokens/s are measured without a busy process, next to one, and next to one at nice 19. The
busy process is an endless loop in Python. The first row of the table shows `mt` unchanged. Each
--try adds a row with one change: an environment variable (GOMP_SPINCOUNT, OMP_WAIT_POLICY) or a
configuration option (threads=1). Each row is measured in a separate process, which trains on the
same updates in all three situations within a short time, so that their ratios can be trusted.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from mt.runtime.environment import prepare_environment

SITUATIONS = {"alone": None, "busy": 0, "nice 19": 19}  # the niceness of the busy process
WARMUP = 4  # updates before the measurement


@contextlib.contextmanager
def busy_process(nice: int | None) -> Iterator[None]:
    """Run a busy process with niceness `nice` during the block, or none if `nice` is None."""
    if nice is None:
        yield
        return
    loop = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(["nice", "-n", str(nice), *loop])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(config_path: str, overrides: list[str], num_updates: int) -> dict[str, float]:
    """Measure target tokens/s in each situation."""
    prepare_environment()
    import logging

    from train import speed

    from mt.config import load_config
    from mt.data.prepare import prepare
    from mt.runtime.device import set_up_compute
    from mt.train.trainer import trial

    logging.getLogger("mt").setLevel(logging.WARNING)
    config = load_config(config_path, overrides)
    compute = set_up_compute(config.device, config.precision, config.threads, for_training=True)
    with trial(config, prepare(config), compute) as trainer:
        with contextlib.closing(trainer.loader.updates()) as updates:  # type: ignore[type-var]
            sample = [next(updates) for _ in range(num_updates)]
        for update in sample[:WARMUP]:
            trainer.train_step(update).read()
        rates = {}
        for name, nice in SITUATIONS.items():
            with busy_process(nice):
                rates[name] = speed(trainer, iter(sample).__next__, num_updates)[0]
    return rates


def measure_in_subprocess(args: argparse.Namespace, change: str) -> dict[str, float]:
    """Call `measure` in a new process with the given change. An empty `change` means none."""
    is_variable = change.partition("=")[0].isupper()
    environment = ["env", change] if is_variable else []
    overrides = [*args.overrides, *([change] if change and not is_variable else [])]
    options = [args.config, *overrides, "--updates", str(args.updates), "--one"]
    result = subprocess.run(
        [*environment, sys.executable, __file__, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    rates: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return rates


def main() -> None:
    """Measure every setting in each round. Print median speeds and their ratios to `alone`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--try", dest="changes", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.config, args.overrides, args.updates)))
        return
    rates: dict[str, list[dict[str, float]]] = {change: [] for change in ("", *args.changes)}
    for _ in range(args.rounds):
        for change, rounds in rates.items():
            rounds.append(measure_in_subprocess(args, change))
    print(
        "| setting | alone | next to a busy process | next to one at nice 19 |\n|---|---|---|---|"
    )
    for change, rounds in rates.items():
        cells = [f"{statistics.median(r['alone'] for r in rounds):,.0f}"]
        for name in ("busy", "nice 19"):
            rate = statistics.median(r[name] for r in rounds)
            share = statistics.median(r[name] / r["alone"] for r in rounds)
            cells.append(f"{rate:,.0f} ({share:.0%})")
        print(f"| {change or '(mt unchanged)'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
