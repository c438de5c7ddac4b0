"""Training speed beside a busy neighbour: target tokens/s alone, beside a busy process, and beside
one at nice 19.

Usage: python scripts/bench/busy.py CONFIG [key=value ...] [--updates 6] [--rounds 3] [--try
NAME=VALUE ...]

The first row is `mt` as its command runs it; each --try is one more, with an environment variable
(GOMP_SPINCOUNT, OMP_WAIT_POLICY) or a setting of the configuration (threads=1) of its own. Every
measurement is a process of its own that meets the three situations one after the other with the
same updates, so that its ratios are of one minute. The neighbour is an endless loop in Python.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator

from mt.runtime.environment import prepare_environment

SITUATIONS = {"alone": None, "busy": 0, "nice 19": 19}
WARMUP = 4


@contextlib.contextmanager
def neighbour(nice: int | None) -> Iterator[None]:
    """One busy process of this priority while the block runs; none for None."""
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
    """Target tokens/s by situation."""
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
            drawn = [next(updates) for _ in range(num_updates)]
        for update in drawn[:WARMUP]:
            trainer.train_step(update).read()
        rates = {}
        for name, nice in SITUATIONS.items():
            with neighbour(nice):
                rates[name] = speed(trainer, iter(drawn).__next__, num_updates)[0]
    return rates


def started(args: argparse.Namespace, change: str) -> dict[str, float]:
    """`measure` in a process of its own, with one change."""
    is_variable = change.partition("=")[0].isupper()
    overrides = [*args.overrides, *([change] if change and not is_variable else [])]
    command = [
        *(["env", change] if is_variable else []),
        sys.executable,
        __file__,
        args.config,
        *overrides,
        "--updates",
        str(args.updates),
        "--one",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def main() -> None:
    """Measure each setting in turn, round by round, and print medians and the ratios to `alone`."""
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
            rounds.append(started(args, change))
    print("| setting | alone | beside a busy process | beside one at nice 19 |\n|---|---|---|---|")
    for change, rounds in rates.items():
        cells = [f"{statistics.median(r['alone'] for r in rounds):,.0f}"]
        for name in ("busy", "nice 19"):
            rate = statistics.median(r[name] for r in rounds)
            share = statistics.median(r[name] / r["alone"] for r in rounds)
            cells.append(f"{rate:,.0f} ({share:.0%})")
        print(f"| {change or '(mt as it is)'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
