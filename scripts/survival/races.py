"""Two processes for one run folder: exactly one trains, to the weights that it has alone, and the other says so."""

import os
from pathlib import Path

from survival.harness import command, finish, reference, same_end, start, write_config

TITLE = "two processes, one run folder: one winner"


def cases(full: bool) -> list[str]:
    """Races, with and without --overwrite."""
    return [f"{('race', '--overwrite')[i % 2]} {i}" for i in range(20 if full else 4)]


def run(case: str, folder: Path) -> str:
    """Let two processes go at the same moment."""
    config = write_config(folder)
    straight = reference(folder, "plain")
    gate_read, gate_write = os.pipe()

    def wait() -> None:
        os.close(gate_write)
        os.read(gate_read, 1)  # returns when the last writer has closed

    options = ("--overwrite",) if case.startswith("--overwrite") else ()
    children = [start(command("train", config, *options, before=wait), folder / f"log{i}.txt") for i in range(2)]
    os.close(gate_read)
    os.close(gate_write)
    codes = sorted(finish(pid) for pid in children)
    if codes != [0, 1]:
        return f"exit codes {codes}"
    logs = [(folder / f"log{i}.txt").read_text() for i in range(2)]
    if sum("another process is using this folder" in log for log in logs) != 1:
        return "the loser did not say why"
    return same_end(folder / "run", straight)
