# ruff: noqa: E402
"""Whether memory stays bounded while batch shapes change: peak resident memory after the first and
after the second half of a training.

Usage: python scripts/check/memory.py CONFIG [key=value ...] [--updates 2000]

Exits 1 where the peak of the whole is more than 1.02 times that of the first half. Validation and
saving are left out.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # before PyTorch loads, as the command `mt` does

import argparse
import contextlib
import logging
import sys
import time

from mt.config import load_config
from mt.data.batch import Batch
from mt.data.prepare import prepare
from mt.runtime.device import set_up_compute
from mt.runtime.memory import peak_process_memory
from mt.train.trainer import trial

BOUND = 1.02


def main() -> None:
    """Train, and compare the peaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=2000)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    config = load_config(args.config, args.overrides)
    compute = set_up_compute(config.device, config.precision, config.threads, for_training=True)
    prepared = prepare(config)
    peaks, shapes, waited, began = [], set(), 0.0, time.perf_counter()
    with (
        trial(config, prepared, compute) as trainer,
        contextlib.closing(trainer.loader.updates()) as updates,
    ):  # type: ignore[type-var]
        for step in range(1, args.updates + 1):
            asked = time.perf_counter()
            update = next(updates)
            waited += time.perf_counter() - asked
            trainer.train_step(update).read()
            shapes |= {
                (batch.src.shape, batch.tgt_in.shape)
                for batch in update.micro_batches
                if isinstance(batch, Batch)
            }
            if step % (args.updates // 2) == 0:
                peaks.append(peak_process_memory() / 2**20)
    first, whole = peaks
    took = time.perf_counter() - began
    print(
        f"{config.run_dir}, {compute}: {args.updates} updates in {took:,.0f} s, {len(shapes)} shapes of batches"
    )
    print(
        f"peak resident memory: {first:,.0f} MiB in the first half, {whole:,.0f} MiB in all: {whole / first:.4f} times (at most {BOUND})"
    )
    print(f"waiting for data: {waited / took:.2%} of the time")
    sys.exit(whole > BOUND * first)


if __name__ == "__main__":
    main()
