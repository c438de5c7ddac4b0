"""What a run computes with: precision and threads, chosen once at its first start and recorded in its
checkpoints, so that a resume continues with them; the same on every rank."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mt.checkpoint import TRAINING, read_json
from mt.config import AUTO, Config
from mt.errors import ConfigError
from mt.runtime import World
from mt.runtime.device import NAMES, Compute, choose_compute, has_native_bf16

logger = logging.getLogger(__name__)


def start_computing(config: Config, resumed: Path | None, world: World) -> tuple[Config, Compute]:
    """`config` with the precision and the threads of this run, and this rank's device, set up for it.

    What the user leaves open (`precision: auto`, no `threads`) is as in the checkpoint `resumed`;
    without one, the first rank decides. Raises `ConfigError` (on other ranks `RankError`) if the
    device of a rank cannot compute in this precision.
    """
    plan = world.first(lambda: _decide(config, resumed, world))
    computes: list[Compute] = []

    def start(ranks: Sequence[int]) -> list[bool]:
        place = world.place(config.device)
        try:
            compute = choose_compute(
                place, plan["precision"], plan["threads_per_rank"],
                deterministic=config.train.deterministic,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{error}{plan['why']}") from error
        computes.append(compute)
        return [compute.dtype != torch.bfloat16 or has_native_bf16(compute.device) for _ in ranks]

    is_fast = world.shared(start, range(world.size))
    slow = [str(rank) for rank, fast in enumerate(is_fast) if not fast]
    if slow and is_fast[0]:  # of itself, the first rank has already said so
        logger.warning(
            "precision: bf16 has no hardware support on rank %s, and all ranks wait for it; "
            "fp32 is the faster choice",
            ", ".join(slow),
        )
    update = {"precision": plan["precision"], "threads": plan["threads"]}
    return config.model_copy(update=update), computes[0]


def _decide(config: Config, resumed: Path | None, world: World) -> dict[str, Any]:
    """Precision, threads of a machine and of a rank; tells the user what has changed."""
    before = {} if resumed is None else read_json(resumed / TRAINING / "state.json")
    precision: str = config.precision
    why = ""
    if precision == AUTO and before.get("precision"):
        precision = before["precision"]
        why = (
            f"\nthis run has computed in {precision} so far; name another precision to change that"
        )
    if precision == AUTO:
        compute = choose_compute(world.place(config.device), precision, None, for_training=True)
        precision = NAMES[compute.dtype]
    threads = config.threads or before.get("threads") or torch.get_num_threads() * world.local_size
    _tell_changes(before, {"precision": precision, "threads": threads})
    if config.threads is None and threads == before.get("threads") and threads > num_cores():
        logger.warning(
            "threads: %d, as this run has had so far, on %d cores; fewer are faster here, but change "
            "the last bits of its numbers (threads=%d)",
            threads, num_cores(), num_cores(),
        )  # fmt: skip
    return {
        "precision": precision, "threads": threads, "threads_per_rank": world.threads(threads),
        "why": why,
    }  # fmt: skip


def _tell_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name, value) != value:  # an old checkpoint does not know
            logger.info("changed since the last start: %s: %s -> %s", name, before[name], value)


def num_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
