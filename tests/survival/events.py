"""Call a function at every disk operation of this process.

The function can kill the process, or raise an error as if the operation had failed.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch

import mt.artifacts.checkpoints
import mt.artifacts.model_folder

CALLS = ("fsync", "rename", "replace", "symlink", "unlink", "rmdir", "mkdir")


def watch(on_event: Callable[[str], None]) -> None:
    """From now on, call `on_event` before and after each operation that changes the disk.

    The argument is the name of the event, such as `before rename`. When a file is written,
    `on_event` is also called in the middle.
    """
    for name in CALLS:
        _wrap(os, name, on_event)

    def write_in_two(path: Path, data: bytes) -> None:
        on_event("before write")
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            on_event("in the middle of write")
            file.write(data[len(data) // 2 :])
        on_event("after write")

    def save_file(tensors: Any, path: Path) -> None:
        write_in_two(path, safetensors.torch.save(tensors))

    def write_text(self: Path, text: str, encoding: str = "utf-8") -> None:
        write_in_two(self, text.encode(encoding))

    for module in (mt.artifacts.model_folder, mt.artifacts.checkpoints):
        module.save_file = save_file  # type: ignore[attr-defined]
    Path.write_text = write_text  # type: ignore[method-assign, assignment]


def _wrap(owner: Any, name: str, on_event: Callable[[str], None]) -> None:
    real = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        on_event(f"before {name}")
        result = real(*args, **options)
        on_event(f"after {name}")
        return result

    setattr(owner, name, call)
