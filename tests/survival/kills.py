"""A run is killed by SIGKILL at any moment; the same command resumes it with the same result."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from survival import events
from survival.harness import command, once, reference, same_end, start, train, write_config

TITLE = "kill -9: resumes to the same weights"


def cases(full: bool) -> list[str]:
    """Return cases that kill the run at a random time, and cases that do so at a disk operation."""
    counts = {"clock": 100, "disk": 100} if full else {"clock": 3, "disk": 8}
    return [f"{kind} {i}/{count}" for kind, count in counts.items() for i in range(count)]


def run(case: str, folder: Path) -> str:
    """Kill a run once, resume it, and compare the result with that of an undisturbed run."""
    kind, place = case.split()
    index, count = map(int, place.split("/"))
    undisturbed = reference(folder, "plain")
    config = write_config(folder)
    if kind == "clock":
        seconds = float((undisturbed.parent / "seconds").read_text()) * random.Random(case).random()
        while (exit_code := kill_after(config, seconds)) == 0:  # the run ended before the kill
            shutil.rmtree(folder / "run")
            seconds *= 0.8
    else:
        exit_code = kill_at_event(config, 1 + index * count_events(folder) // count)
    if exit_code != -signal.SIGKILL:
        return f"the killed process exited with {exit_code}"
    code = train(config)
    return f"the resumed run exited with {code}" if code else same_end(folder / "run", undisturbed)


def kill_after(config: Path, seconds: float) -> int:
    """Kill a training run `seconds` after its start, and return its exit code."""
    child = start(command("train", config), config.parent / "log.txt")
    time.sleep(seconds)
    child.kill()
    return child.wait()


def kill_at_event(config: Path, number: int) -> int:
    """Let a training run kill itself at its `number`-th disk event, and return its exit code."""
    remaining = number

    def count_down(name: str) -> None:
        nonlocal remaining
        remaining -= 1
        if not remaining:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(config, before=lambda: events.watch(count_down))


def count_events(folder: Path) -> int:
    """Return the number of disk events in a complete run; only the first call counts them."""

    def make(temporary: Path) -> None:
        config = write_config(temporary)

        def watch() -> None:
            descriptor = os.open(temporary / "names.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            events.watch(lambda name: os.write(descriptor, f"{name}\n".encode()) and None)

        assert train(config, before=watch) == 0, (temporary / "log.txt").read_text()

    return (once(folder.parent / "events", make) / "names.txt").read_bytes().count(b"\n")
