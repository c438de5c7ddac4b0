"""Two ranks under `mt train --nproc 2`: killed and started anew, stopped and named, signalled and
gone on from, at random updates.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from survival.harness import ROOT, STEPS, WAIT, once, same_end, until, write_config

TITLE = "ranks killed, stopped, signalled: same end, or an end in time that names the silent one"
TIMEOUT = 5  # seconds, of train.timeout
SIGNALLED = ("rank 0", "rank 1", "ranks", "launcher", "all")


def cases(full: bool) -> list[str]:
    """20 kills, 10 stops, 20 signals, 20 runs on changing numbers of ranks."""
    kills = [f"kill {i}" for i in range(20 if full else 1)]
    stops = [f"stop {i}" for i in range(10 if full else 1)]
    signals = [f"signal {i}" for i in range(20 if full else 1)]
    return [*kills, *stops, *signals]


def run(case: str, folder: Path) -> str:
    """One run, and what was not kept of its promise."""
    return {"kill": kill, "stop": stop, "signal": signalled}[case.split()[0]](
        random.Random(case), case, folder
    )


def kill(chance: random.Random, case: str, folder: Path) -> str:
    """SIGKILL one rank; the launcher starts anew, and the end is that of a run that nobody touched."""
    process = started(folder, "--max-restarts", "3")
    wait_for_update(folder, chance.randrange(1, STEPS - 1))
    victims = ranks_of(process)
    if len(victims) != 2:
        return f"{len(victims)} ranks"
    os.kill(victims[chance.randrange(2)], signal.SIGKILL)
    code = process.wait(WAIT)
    if code:
        return f"exit {code}: {said(folder)}"
    if "restarted by the launcher" not in said(folder, 100_000):
        return "no rank was started anew"
    return orphans(folder) or same_end(folder / "run", straight(folder))


def stop(chance: random.Random, case: str, folder: Path) -> str:
    """SIGSTOP one rank; the run ends within the timeout and ten seconds, and names it."""
    process = started(folder)
    wait_for_update(folder, chance.randrange(1, STEPS - 1))
    rank = chance.randrange(2)
    pid = by_rank(process)[rank]
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    code = process.wait(WAIT)
    took = time.monotonic() - began
    status = json.loads((folder / "run/status.json").read_text())
    if code != 1 or status["state"] != "failed":
        return f"exit {code}, status {status}"
    if took > TIMEOUT + 10:
        return f"ended after {took:.1f} s"
    if (
        f"from rank {rank} (" not in said(folder)
        or f"process {pid})" not in said(folder)
        or "update " not in status["message"]
    ):
        return f"the silent rank {rank} is not named: {said(folder)}"
    return orphans(folder)


def signalled(chance: random.Random, case: str, folder: Path) -> str:
    """SIGTERM or SIGINT to one rank, both, the launcher or all: all save one update, and the run
    goes on from it to the same end.
    """
    number = int(case.split()[1])
    kind = (signal.SIGTERM, signal.SIGINT)[number // len(SIGNALLED) % 2]
    whom = SIGNALLED[number % len(SIGNALLED)]
    process = started(folder)
    wait_for_update(folder, chance.randrange(1, STEPS - 2))
    ranks = by_rank(process)
    targets = {
        "rank 0": ranks[:1],
        "rank 1": ranks[1:],
        "ranks": ranks,
        "launcher": [process.pid],
        "all": [*ranks, process.pid],
    }[whom]
    for pid in targets:
        os.kill(pid, kind)
    code = process.wait(WAIT)
    status = json.loads((folder / "run/status.json").read_text())
    if code != 128 + kind or status["exit_code"] != code or status["state"] != "interrupted":
        return f"{kind.name} to {whom}: exit {code}, status {status}: {said(folder)}"
    newest = max(int(path.name[5:]) for path in (folder / "run/checkpoints").glob("step_*"))
    if f"stopped after update {newest} and saved" not in status["message"]:
        return f"{kind.name} to {whom}: the newest checkpoint is {newest}, {status}"
    if problem := orphans(folder):
        return problem
    code = started(folder).wait(WAIT)
    return (
        f"going on exited with {code}: {said(folder)}"
        if code
        else same_end(folder / "run", straight(folder))
    )


def started(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """The real command with two ranks, its output in log.txt."""
    config = write_config(folder)
    overrides = ["train.grad_accum_steps=2", f"train.timeout={TIMEOUT}"]
    command = [
        sys.executable,
        "-m",
        "mt",
        "train",
        str(config),
        *overrides,
        "--nproc",
        "2",
        *options,
    ]
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def straight(folder: Path) -> Path:
    """The run folder of two ranks that nobody touched, made once."""

    def make(made: Path) -> None:
        assert started(made).wait(WAIT) == 0, said(made)

    return once(folder.parent / "reference-ranks", make) / "run"


def wait_for_update(folder: Path, update: int) -> None:
    """Return once metrics.jsonl has this update."""
    until(
        lambda: f'"step": {update},' in read(folder / "run/metrics.jsonl"),
        f"update {update} never came: {said(folder)}",
    )


def by_rank(process: "subprocess.Popen[bytes]") -> list[int]:
    """The process of each rank."""
    found = {int(environment(pid)["RANK"]): pid for pid in ranks_of(process)}
    return [found[rank] for rank in sorted(found)]


def ranks_of(process: "subprocess.Popen[bytes]") -> list[int]:
    """The processes that the launcher has started."""
    return [
        pid
        for pid in map(int, read(Path(f"/proc/{process.pid}/task/{process.pid}/children")).split())
        if "RANK" in environment(pid)
    ]


def environment(pid: int) -> dict[str, str]:
    """A process's environment variables, those that have none but a name left out."""
    lines = read(Path(f"/proc/{pid}/environ")).split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def orphans(folder: Path) -> str:
    """Processes of the run that are still there after a moment, in words."""
    left: list[int] = []

    def gone() -> bool:
        left[:] = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if str(folder / "small.yaml") in read(path)
        ]
        return not left

    try:
        until(gone, "", seconds=3)
    except AssertionError:
        return f"orphans: {left}"
    return ""


def read(path: Path) -> str:
    """What a file that comes and goes holds."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def said(folder: Path, length: int = 600) -> str:
    """The end of what the run has printed."""
    return read(folder / "log.txt")[-length:]
