"""The functions that test_workers.py sends to workers.

Workers import this file, so it imports only what it needs.
"""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from mt.errors import ConfigError


def item_and_process(item: int) -> tuple[int, int]:
    """Return the item and the process id; every third item takes longer."""
    time.sleep(0.05 if item % 3 == 0 else 0.0)
    return item, os.getpid()


def threads(item: int) -> int:
    return torch.get_num_threads()


def product(a: torch.Tensor, item: int) -> float:
    return float((a @ a).sum())


def fails(item: int) -> int:
    raise ValueError("no such thing")


def three_is_too_much(item: int) -> int:
    if item == 3:
        raise ConfigError("three is too much")
    time.sleep(0.01)
    return os.getpid()


def sleeps_after_two(item: int) -> int:
    time.sleep(0.0 if item < 2 else 60)
    return os.getpid()


def killed_at_two(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def logs(item: int) -> int:
    logging.getLogger("mt.runtime.device").warning("warning %d", item)
    logging.getLogger("mt.runtime.device").debug("debug %d", item)
    return item


class NotWithoutModule:
    """A function that can be pickled but not unpickled."""

    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_anywhere",)

    def __call__(self, item: int) -> int:
        return item


def ancestry(item: int) -> dict[str, Any]:
    """Return the parent and grandparent of this process, and how many threads the parent has."""
    parent = os.getppid()
    return {
        "parent": parent,
        "parent_threads": len(os.listdir(f"/proc/{parent}/task")),
        "parent_command": Path(f"/proc/{parent}/cmdline").read_bytes().decode(),
        "grandparent": int(Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[1]),
    }


def anonymous_memory() -> int:
    """Return how many bytes of this process's memory do not belong to a mapped file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


def growth_by(how: str, tensor: torch.Tensor, item: int) -> tuple[int, float]:
    """Read, copy or write to a tensor; return the growth of private memory and the tensor's sum."""
    before = anonymous_memory()
    if how == "write":
        tensor += 1
    held = tensor.clone() if how == "copy" else tensor
    return anonymous_memory() - before, float(held.sum())
