# ruff: noqa: E402
"""Check that memory does not grow during training although the batch shapes keep changing.

Usage: python scripts/check/memory.py CONFIG [key=value ...] [--updates 2000]

Peak resident memory is measured after the first half of the training and at the end. The exit code
is 1 if the peak grows by more than 2 % in the second half. Nothing is validated or saved.
"""

from mt.runtime.environment import prepare_environment

prepare_environment()  # must run before PyTorch is imported, as in the `mt` command

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

BOUND = 1.02  # the limit for the final peak, relative to the peak of the first half


def main() -> None:
    """Train, and compare the memory peaks after the first half and at the end."""
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
    peaks, shapes, data_seconds, start = [], set(), 0.0, time.perf_counter()
    with (
        trial(config, prepared, compute) as trainer,
        contextlib.closing(trainer.loader.updates()) as updates,
    ):  # type: ignore[type-var]
        for step in range(1, args.updates + 1):
            before = time.perf_counter()
            update = next(updates)
            data_seconds += time.perf_counter() - before
            trainer.train_step(update).read()
            shapes |= {
                (batch.src.shape, batch.tgt_in.shape)
                for batch in update.micro_batches
                if isinstance(batch, Batch)
            }
            if step % (args.updates // 2) == 0:
                peaks.append(peak_process_memory() / 2**20)
    first, final = peaks
    seconds = time.perf_counter() - start
    print(
        f"{config.run_dir}, {compute}: {args.updates} updates in {seconds:,.0f} s, "
        f"{len(shapes)} batch shapes\n"
        f"peak resident memory: {first:,.0f} MiB in the first half, {final:,.0f} MiB at the end, "
        f"which is {final / first:.4f} times as much (the limit is {BOUND})\n"
        f"{data_seconds / seconds:.2%} of the time was spent waiting for data"
    )
    sys.exit(final > BOUND * first)


if __name__ == "__main__":
    main()
