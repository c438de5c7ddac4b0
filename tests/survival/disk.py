"""A disk that is full or fails: the checkpoint before stays, three failed saves end the run, and
with room it goes on.
"""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mt.artifacts.checkpoints
from mt.artifacts import CheckpointManager, verify
from mt.train.trainer import Trainer
from survival import events
from survival.harness import STEPS, learned, reference, same_end, train, write_config

TITLE = "disk full or failing: the checkpoint before still loads"
SOME, EVER = 6, 10_000  # events that fail


def cases(full: bool) -> list[str]:
    """A small disk of its own and a limit on the size of files, both real; errors at what is done
    to the disk, for a while or for ever.
    """
    kinds = ("disk" if can_mount() else "limit", "ENOSPC-ever", "EIO-some", "limit")
    return [f"{kinds[i % 4]} {i}" for i in range(20 if full else 4)]


def run(case: str, folder: Path) -> str:
    """Break the disk some time after the first checkpoint, then mend it and go on."""
    if case.startswith("disk "):
        with small_disk(folder / "run", folder):
            return try_disk(case, folder)
    return try_disk(case, folder)


def try_disk(case: str, folder: Path) -> str:
    """What was not kept, or nothing."""
    kind, chance = case.split()[0], random.Random(case)
    config, step = write_config(folder), chance.randint(1, 17)  # at least three saves are to come

    def break_disk() -> None:
        if chance.random() < 0.5:
            mt.artifacts.checkpoints.SPARE = -(
                1 << 40
            )  # as if another process had filled the disk after the look at its free space
        if kind == "limit":
            limit_files(step, chance.choice((2_000, 20_000, 100_000)))
        elif kind != "disk":
            fail_events(step, kind)

    code = train(config, before=break_disk)
    log = (folder / "log.txt").read_text()
    if code not in (0, 1) or "Traceback" in log:
        return f"exit {code}: {log[-300:]}"
    if kind == "EIO-some" and os.strerror(errno.EIO) not in log:
        return "nothing was said of the errors"
    if kind == "limit":  # which stderr is under as well
        status = json.loads((folder / "run/status.json").read_text())
        if code != 1 or "could not be written" not in status["message"]:
            return f"exit {code}, status {status}"
    elif kind != "EIO-some" and (code != 1 or log.count("of 3 failed saves") != 2):
        return f"exit {code} without three failed saves: {log[-300:]}"
    manager = CheckpointManager(folder / "run", 2, 1, "bleu")
    if not manager.steps() and step > 4:
        return "no checkpoint is left"
    for kept in manager.steps():
        verify(manager.path(kept), with_training=True)
    if kind == "disk":
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder / "run")], check=True)
    if code := train(config):
        return f"going on exited with {code}"
    straight = reference(folder, "plain")
    if kind == "EIO-some":  # a validation that could not be written stays so
        return "" if learned(folder / "run") == learned(straight) else "other weights"
    return same_end(folder / "run", straight)


def can_mount() -> bool:
    """Whether this process may make a disk of its own."""
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False
        ).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


@contextlib.contextmanager
def small_disk(place: Path, folder: Path) -> Iterator[None]:
    """A disk at `place` that holds two checkpoints and not three."""
    checkpoint = reference(folder, "plain") / f"checkpoints/step_{STEPS:08d}"
    size = sum(path.stat().st_size + 4096 for path in checkpoint.rglob("*"))
    place.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(2.6 * size)}", "tmpfs", str(place)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def at_update(step: int, action) -> None:  # type: ignore[no-untyped-def]
    """Call `action` when this process begins the update `step`."""
    real = Trainer.train_step

    def train_step(self, update):  # type: ignore[no-untyped-def]
        if self.step == step:
            action()
        return real(self, update)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def limit_files(step: int, size: int) -> None:
    """From an update on, the system refuses to let any file grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    at_update(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def fail_events(step: int, kind: str) -> None:
    """From an update on, what is done to the disk raises."""
    code = errno.ENOSPC if kind.startswith("ENOSPC") else errno.EIO
    left = 0

    def begin() -> None:
        nonlocal left
        left = SOME if kind.endswith("some") else EVER

    def happen(name: str) -> None:
        nonlocal left
        if left and not name.startswith("after"):
            left -= 1
            raise OSError(code, os.strerror(code))

    events.watch(happen)
    at_update(step, begin)
