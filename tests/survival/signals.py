"""SIGTERM arrives while the run prepares its data, trains, validates or saves.

The run exits with 143 in time, and the resumed run has the same result as an undisturbed run.
"""

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mt.data.prepare
from mt.artifacts import CheckpointManager
from mt.train.trainer import Trainer
from mt.train.validation import Validator
from survival.harness import command, reference, same_end, start, train, write_config

TITLE = "SIGTERM: exit 143 in time, and resumes"
# For each phase: the owner and the name of its function, and how often a run calls it at least.
PHASES: dict[str, tuple[Any, str, int]] = {
    "tokenizing": (mt.data.prepare, "train_tokenizer", 1),
    "caching": (mt.data.prepare, "build_cache", 1),
    "training": (Trainer, "train_step", 28),
    "validating": (Validator, "validate", 3),
    "saving": (CheckpointManager, "save", 7),
}
# Seconds from the signal to the exit. In this time, the run may finish an update and a save, which
# take hundredths of a second here.
LIMIT = 5.0


def cases(full: bool) -> list[str]:
    """Return cases for each phase in turn."""
    return [f"{phase} {i}" for i in range(10 if full else 1) for phase in PHASES]


def run(case: str, folder: Path) -> str:
    """Send the signal at a random moment during a random call of the phase's function."""
    phase = case.split()[0]
    owner, name, calls = PHASES[phase]
    rng = random.Random(case)
    config, sent = write_config(folder, cache=folder / "cache"), folder / "sent.json"
    call, delay = rng.randint(1, calls), rng.random() * 0.03
    while True:
        sent.unlink(missing_ok=True)
        before = partial(signal_during, owner, name, call, delay, sent)
        code = start(command("train", config, before=before), folder / "log.txt").wait()
        if not sent.exists():
            return f"the signal was never sent; exit {code}"
        sent_at, is_running = json.loads(sent.read_text())
        if is_running:
            break
        delay /= 2  # the call had ended before the signal was sent
        for path in (folder / "run", folder / "cache"):
            shutil.rmtree(path, ignore_errors=True)
    took = time.time() - sent_at
    if code != 143:
        return f"exit {code}"
    if took > LIMIT:
        return f"exit after {took:.1f} s"
    status = json.loads((folder / "run/status.json").read_text())
    if (status["state"], status["exit_code"]) != ("interrupted", 143):
        return f"status {status}"
    if code := train(config):
        return f"the resumed run exited with {code}"
    return same_end(folder / "run", reference(folder, "plain"))


def signal_during(owner: Any, name: str, call: int, delay: float, sent: Path) -> None:
    """Send SIGTERM to this process `delay` seconds after the `call`-th call of a function starts.

    The file `sent` then holds the time of the signal, and whether the call was still running.
    """
    real: Callable[..., Any] = getattr(owner, name)
    remaining_calls, is_running = call, False

    def send() -> None:
        time.sleep(delay)
        sent.write_text(json.dumps([time.time(), is_running]))
        os.kill(os.getpid(), signal.SIGTERM)

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal remaining_calls, is_running
        remaining_calls -= 1
        if remaining_calls:
            return real(*args, **options)
        is_running = True
        threading.Thread(target=send, daemon=True).start()
        try:
            return real(*args, **options)
        finally:
            is_running = False

    setattr(owner, name, wrapped)
