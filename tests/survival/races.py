"""Two processes for one run folder: exactly one trains, to the weights that it has alone, and the
other says so.
"""

from functools import partial
from pathlib import Path

from survival.harness import command, reference, same_end, start, until, write_config

TITLE = "two processes, one run folder: one winner"


def cases(full: bool) -> list[str]:
    """Races, with and without --overwrite."""
    return [f"{('race', '--overwrite')[i % 2]} {i}" for i in range(20 if full else 2)]


def run(case: str, folder: Path) -> str:
    """Let two processes go at the same moment."""
    config = write_config(folder)
    straight = reference(folder, "plain")
    gate, waiting = folder / "gate", [folder / f"waiting{i}" for i in range(2)]

    def wait(here: Path) -> None:
        here.touch()
        until(gate.exists, "the race never began", pause=0.0005)

    options = ("--overwrite",) if case.startswith("--overwrite") else ()
    children = [
        start(command("train", config, *options, before=partial(wait, waiting[i])), folder / f"log{i}.txt")
        for i in range(2)
    ]  # fmt: skip
    until(lambda: all(path.exists() for path in waiting), "a process never came to the start")
    gate.touch()
    codes = sorted(child.wait() for child in children)
    if codes != [0, 1]:
        return f"exit codes {codes}"
    logs = [(folder / f"log{i}.txt").read_text() for i in range(2)]
    if sum("another process is using this folder" in log for log in logs) != 1:
        return "the loser did not say why"
    return same_end(folder / "run", straight)
