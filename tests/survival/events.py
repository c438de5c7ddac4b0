"""What a process does to the disk, event by event: each write, fsync, rename and deletion, where a
test may kill it or make it fail.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

import mt.artifacts.checkpoints
import mt.artifacts.model_folder

CALLS = ("fsync", "rename", "replace", "symlink", "unlink", "rmdir", "mkdir")


def watch(happen: Callable[[str], None]) -> None:
    """From now on call `happen` with a name before and after each call that changes the disk, and
    in the middle of each file written.
    """
    for name in CALLS:
        _wrap(os, name, happen)

    def write_in_two(path: Path, data: bytes) -> None:
        happen("before write")
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            happen("in the middle of write")
            file.write(data[len(data) // 2 :])
        happen("after write")

    def save_file(tensors: Any, path: Path) -> None:
        write_in_two(path, safetensors.torch.save(tensors))

    def write_text(self: Path, text: str, encoding: str = "utf-8") -> None:
        write_in_two(self, text.encode(encoding))

    mt.artifacts.model_folder.save_file = mt.artifacts.checkpoints.save_file = save_file  # type: ignore[assignment]
    Path.write_text = write_text  # type: ignore[method-assign, assignment]


def _wrap(owner: Any, name: str, happen: Callable[[str], None]) -> None:
    real = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        happen(f"before {name}")
        result = real(*args, **options)
        happen(f"after {name}")
        return result

    setattr(owner, name, call)
