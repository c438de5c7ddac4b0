"""Two processes start on the same run folder: exactly one trains, the other reports an error.

The result equals that of a run without a second process.
"""

from functools import partial
from pathlib import Path

from survival.harness import command, reference, same_end, start, wait_until, write_config

TITLE = "two processes, one run folder: one winner"


def cases(full: bool) -> list[str]:
    """Return races with and without `--overwrite`."""
    return [f"{('race', '--overwrite')[i % 2]} {i}" for i in range(20 if full else 2)]


def run(case: str, folder: Path) -> str:
    """Start two processes at the same moment."""
    config = write_config(folder)
    undisturbed = reference(folder, "plain")
    gate, waiting = folder / "gate", [folder / f"waiting{i}" for i in range(2)]

    def wait(ready: Path) -> None:
        ready.touch()
        wait_until(gate.exists, "the race did not start", pause=0.0005)

    options = ("--overwrite",) if case.startswith("--overwrite") else ()
    children = [
        start(
            command("train", config, *options, before=partial(wait, waiting[i])),
            folder / f"log{i}.txt",
        )
        for i in range(2)
    ]
    wait_until(
        lambda: all(path.exists() for path in waiting), "a process did not get ready for the race"
    )
    gate.touch()
    codes = sorted(child.wait() for child in children)
    if codes != [0, 1]:
        return f"exit codes {codes}"
    logs = [(folder / f"log{i}.txt").read_text() for i in range(2)]
    if sum("another process is using this folder" in log for log in logs) != 1:
        return "the process that lost did not report the lock"
    return same_end(folder / "run", undisturbed)
