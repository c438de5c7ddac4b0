"""kill -9 at any moment: the same command goes on to the same bytes."""

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
    """Half by the clock, half at what is done to the disk."""
    counts = {"clock": 100, "disk": 100} if full else {"clock": 3, "disk": 8}
    return [f"{kind} {i}/{count}" for kind, count in counts.items() for i in range(count)]


def run(case: str, folder: Path) -> str:
    """Kill once, go on, compare with a run that nobody touched."""
    kind, place = case.split()
    index, count = map(int, place.split("/"))
    straight = reference(folder, "plain")
    config = write_config(folder)
    if kind == "clock":
        seconds = float((straight.parent / "seconds").read_text()) * random.Random(case).random()
        while (killed := kill_after(config, seconds)) == 0:  # it was done before
            shutil.rmtree(folder / "run")
            seconds *= 0.8
    else:
        killed = kill_at_event(config, 1 + index * count_events(folder) // count)
    if killed != -signal.SIGKILL:
        return f"the killed process exited with {killed}"
    code = train(config)
    return f"going on exited with {code}" if code else same_end(folder / "run", straight)


def kill_after(config: Path, seconds: float) -> int:
    """Kill a training `seconds` after its start."""
    child = start(command("train", config), config.parent / "log.txt")
    time.sleep(seconds)
    child.kill()
    return child.wait()


def kill_at_event(config: Path, number: int) -> int:
    """Let a training kill itself at its `number`-th event on the disk."""
    left = number

    def happen(name: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return train(config, before=lambda: events.watch(happen))


def count_events(folder: Path) -> int:
    """How many events on the disk a whole run has, counted once."""

    def make(made: Path) -> None:
        config = write_config(made)

        def watch() -> None:
            descriptor = os.open(made / "names.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            events.watch(lambda name: os.write(descriptor, f"{name}\n".encode()) and None)

        assert train(config, before=watch) == 0, (made / "log.txt").read_text()

    return (once(folder.parent / "events", make) / "names.txt").read_bytes().count(b"\n")
