"""SIGTERM while tokenizing, training, validating or saving: exit 143 within an update, a save and 5
s, and the same bytes afterwards.
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
PHASES: dict[
    str, tuple[Any, str, int]
] = {  # whose function, its name, how many times it is called before its end
    "tokenizing": (mt.data.prepare, "train_tokenizer", 1),
    "caching": (mt.data.prepare, "build_cache", 1),
    "training": (Trainer, "train_step", 28),
    "validating": (Validator, "validate", 3),
    "saving": (CheckpointManager, "save", 7),
}
LIMIT = 5.0  # seconds beside an update and a save, which take hundredths here


def cases(full: bool) -> list[str]:
    """Each phase in turn."""
    return [f"{phase} {i}" for i in range(10 if full else 1) for phase in PHASES]


def run(case: str, folder: Path) -> str:
    """Signal at a random call of the phase's function and a random moment after it began."""
    phase = case.split()[0]
    owner, name, calls = PHASES[phase]
    chance = random.Random(case)
    config, sent = write_config(folder, cache=folder / "cache"), folder / "sent.json"
    call, delay = chance.randint(1, calls), chance.random() * 0.03
    while True:
        sent.unlink(missing_ok=True)
        before = partial(signal_in, owner, name, call, delay, sent)
        code = start(command("train", config, before=before), folder / "log.txt").wait()
        if not sent.exists():
            return f"the signal was never sent; exit {code}"
        at, inside = json.loads(sent.read_text())
        if inside:
            break
        delay /= 2  # the phase was over before
        for path in (folder / "run", folder / "cache"):
            shutil.rmtree(path, ignore_errors=True)
    took = time.time() - at
    if code != 143:
        return f"exit {code}"
    if took > LIMIT:
        return f"exit after {took:.1f} s"
    status = json.loads((folder / "run/status.json").read_text())
    if (status["state"], status["exit_code"]) != ("interrupted", 143):
        return f"status {status}"
    code = train(config)
    return (
        f"going on exited with {code}"
        if code
        else same_end(folder / "run", reference(folder, "plain"))
    )


def signal_in(owner: Any, name: str, call: int, delay: float, sent: Path) -> None:
    """Send this process a SIGTERM `delay` seconds after the `call`-th call of a function has begun;
    `sent` tells when.
    """
    real: Callable[..., Any] = getattr(owner, name)
    left, inside = call, False

    def send() -> None:
        time.sleep(delay)
        sent.write_text(json.dumps([time.time(), inside]))
        os.kill(os.getpid(), signal.SIGTERM)

    def wrapped(*args: Any, **options: Any) -> Any:
        nonlocal left, inside
        left -= 1
        if left:
            return real(*args, **options)
        inside = True
        threading.Thread(target=send, daemon=True).start()
        try:
            return real(*args, **options)
        finally:
            inside = False

    setattr(owner, name, wrapped)
