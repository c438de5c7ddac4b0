"""Checkpoint files that are truncated, altered or deleted are detected before they are used.

The run then resumes from the previous checkpoint.
"""

import contextlib
import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from mt.artifacts import MANIFEST, CheckpointManager
from mt.decode.loading import load_model
from mt.errors import CheckpointError
from survival.harness import reference

TITLE = "damaged checkpoint files: detected, and the previous checkpoint is used"


def cases(full: bool) -> list[str]:
    """Return cases for four kinds of damage, each at random places of random files."""
    count = 250 if full else 6
    return [f"{kind} {i}" for i in range(count) for kind in ("truncate", "flip", "zero", "delete")]


def run(case: str, folder: Path) -> str:
    """Damage one file of the newest checkpoint, and check that the previous checkpoint is used."""
    undisturbed = reference(folder, "plain")
    shutil.copytree(undisturbed / "checkpoints", folder / "run/checkpoints", symlinks=True)
    manager = CheckpointManager(folder / "run", 2, 1, "bleu")
    *_, previous, newest = manager.steps()
    rng = random.Random(case)
    file = rng.choice(sorted(path for path in manager.path(newest).rglob("*") if path.is_file()))
    damage(file, case.split()[0], rng)
    if "training" not in file.parts:
        try:
            load_model(manager.path(newest), torch.device("cpu"))
            return f"{file.name}: the damaged model was loaded"
        except CheckpointError as error:
            if f"{file.name}: " not in f"{error}: " and file.name != MANIFEST:
                return f"the error does not name {file.name}: {error}"
    with hide_warnings():
        resumed_from = manager.newest()
    if resumed_from != manager.run.checkpoint(previous):
        return f"{file.name}: resumed from {resumed_from}"
    return ""


@contextlib.contextmanager
def hide_warnings() -> Iterator[None]:
    """Hide the warnings about the damage, which are expected."""
    logger = logging.getLogger("mt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def damage(file: Path, kind: str, rng: random.Random) -> None:
    """Damage a file so that at least one bit differs."""
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
        return
    if kind == "truncate":
        del data[rng.randrange(len(data)) :]
    elif kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        start = rng.choice([i for i, byte in enumerate(data) if byte])
        length = rng.choice((1, 16, 512, 4096))
        data[start : start + length] = bytes(len(data[start : start + length]))
    file.write_bytes(data)
