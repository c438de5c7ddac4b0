"""The disk is full or fails during training.

Earlier checkpoints stay intact, the run ends after three failed saves, and it resumes once the disk
works again.
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
from survival.harness import STEPS, reference, same_end, tensor_hashes, train, write_config

TITLE = "disk full or failing: the previous checkpoint still loads"
SOME, EVER = 6, 10_000  # number of disk operations that fail


def cases(full: bool) -> list[str]:
    """Return cases for a small real disk, a real limit on file sizes, and simulated disk errors.

    If this process may not mount a small disk, it uses the limit instead. The simulated errors are
    temporary (`some`) or permanent (`ever`).
    """
    kinds = ("disk" if can_mount() else "limit", "ENOSPC-ever", "EIO-some", "limit")
    return [f"{kinds[i % 4]} {i}" for i in range(20 if full else 4)]


def run(case: str, folder: Path) -> str:
    """Train until the disk breaks at a random update, repair the disk, and resume the run."""
    if case.startswith("disk "):
        with small_disk(folder / "run", folder):
            return try_disk(case, folder)
    return try_disk(case, folder)


def try_disk(case: str, folder: Path) -> str:
    """Run a case, and return how the promise was broken, or ""."""
    kind, rng = case.split()[0], random.Random(case)
    # After update 17, at least three saves are still to come.
    config, step = write_config(folder), rng.randint(1, 17)

    def break_disk() -> None:
        if rng.random() < 0.5:
            # Disable the free-space check, as if another process filled the disk after the check.
            mt.artifacts.checkpoints.SPARE = -(1 << 40)
        if kind == "limit":
            limit_files(step, rng.choice((2_000, 20_000, 100_000)))
        elif kind != "disk":
            fail_events(step, kind)

    code = train(config, before=break_disk)
    log = (folder / "log.txt").read_text()
    if code not in (0, 1) or "Traceback" in log:
        return f"exit {code}: {log[-300:]}"
    if kind == "EIO-some" and os.strerror(errno.EIO) not in log:
        return "the errors were not reported"
    if kind == "limit":  # the limit applies to log.txt as well, so read the status instead
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
        return f"the resumed run exited with {code}"
    undisturbed = reference(folder, "plain")
    if kind == "EIO-some":  # the results of a validation may be missing, so compare only tensors
        same = tensor_hashes(folder / "run") == tensor_hashes(undisturbed)
        return "" if same else "the weights differ"
    return same_end(folder / "run", undisturbed)


def can_mount() -> bool:
    """Return whether this process is allowed to mount a tmpfs."""
    with tempfile.TemporaryDirectory() as place:
        if subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True, check=False
        ).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


@contextlib.contextmanager
def small_disk(place: Path, folder: Path) -> Iterator[None]:
    """Mount a disk at `place` that has room for two checkpoints but not for three."""
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
    """Call `action` in this process after update `step`, before the next one."""
    real = Trainer.train_step

    def train_step(self, update):  # type: ignore[no-untyped-def]
        if self.step == step:
            action()
        return real(self, update)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def limit_files(step: int, size: int) -> None:
    """After update `step`, let no file of this process grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    at_update(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))


def fail_events(step: int, kind: str) -> None:
    """After update `step`, let the disk operations of this process raise `OSError`."""
    code = errno.ENOSPC if kind.startswith("ENOSPC") else errno.EIO
    remaining = 0

    def start_failing() -> None:
        nonlocal remaining
        remaining = SOME if kind.endswith("some") else EVER

    def fail(name: str) -> None:
        nonlocal remaining
        if remaining and not name.startswith("after"):
            remaining -= 1
            raise OSError(code, os.strerror(code))

    events.watch(fail)
    at_update(step, start_failing)
