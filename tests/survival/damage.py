"""Files of a checkpoint cut short, with a bit turned, with zeros, or gone: caught before use, and
the checkpoint before is taken.
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

TITLE = "damaged checkpoint files: caught, and the one before taken"


def cases(full: bool) -> list[str]:
    """Four kinds of damage, random files and places."""
    count = 250 if full else 6
    return [f"{kind} {i}" for i in range(count) for kind in ("truncate", "flip", "zero", "delete")]


def run(case: str, folder: Path) -> str:
    """Damage one file of the newest checkpoint."""
    straight = reference(folder, "plain")
    shutil.copytree(straight / "checkpoints", folder / "run/checkpoints", symlinks=True)
    manager = CheckpointManager(folder / "run", 2, 1, "bleu")
    *_, before, newest = manager.steps()
    chance = random.Random(case)
    file = chance.choice(sorted(path for path in manager.path(newest).rglob("*") if path.is_file()))
    harm(file, case.split()[0], chance)
    if "training" not in file.parts:
        try:
            load_model(manager.path(newest), torch.device("cpu"))
            return f"{file.name}: loaded"
        except CheckpointError as error:
            if f"{file.name}: " not in f"{error}: " and file.name != MANIFEST:
                return f"{file.name}: not named: {error}"
    with quiet():
        found = manager.newest()
    if found != manager.run.checkpoint(before):
        return f"{file.name}: went on from {found}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warning that is meant."""
    logger = logging.getLogger("mt")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def harm(file: Path, kind: str, chance: random.Random) -> None:
    """Damage a file so that at least one bit differs."""
    data = bytearray(file.read_bytes())
    if kind == "delete":
        file.unlink()
        return
    if kind == "truncate":
        del data[chance.randrange(len(data)) :]
    elif kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    else:
        at = chance.choice([i for i, byte in enumerate(data) if byte])
        length = chance.choice((1, 16, 512, 4096))
        data[at : at + length] = bytes(len(data[at : at + length]))
    file.write_bytes(data)
