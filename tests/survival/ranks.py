"""The ranks of `mt train --nproc 2` are killed, stopped or signalled at random updates.

The run reaches the result of an undisturbed run. If a rank is stopped, the run instead ends in time
and names that rank.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from survival.harness import ROOT, STEPS, WAIT, once, same_end, wait_until, write_config

TITLE = "ranks killed, stopped, signalled: same result, or an error that names the stopped rank"
TIMEOUT = 5  # the value of train.timeout, in seconds
SIGNALLED = ("rank 0", "rank 1", "ranks", "launcher", "all")


def cases(full: bool) -> list[str]:
    """Return cases that kill a rank, stop a rank, or send a signal to processes of the run."""
    kills = [f"kill {i}" for i in range(20 if full else 1)]
    stops = [f"stop {i}" for i in range(10 if full else 1)]
    signals = [f"signal {i}" for i in range(20 if full else 1)]
    return [*kills, *stops, *signals]


def run(case: str, folder: Path) -> str:
    """Disturb one run as `case` says, and return how the promise was broken, or ""."""
    return {"kill": kill_rank, "stop": stop_rank, "signal": signal_ranks}[case.split()[0]](
        random.Random(case), case, folder
    )


def kill_rank(rng: random.Random, case: str, folder: Path) -> str:
    """Kill one rank; the launcher restarts the run, which ends like an undisturbed run."""
    process = start_ranks(folder, "--max-restarts", "3")
    wait_for_update(folder, rng.randrange(1, STEPS - 1))
    victims = rank_pids(process)
    if len(victims) != 2:
        return f"{len(victims)} ranks"
    os.kill(victims[rng.randrange(2)], signal.SIGKILL)
    code = process.wait(WAIT)
    if code:
        return f"exit {code}: {end_of_log(folder)}"
    if "restarted by the launcher" not in end_of_log(folder, 100_000):
        return "no rank was restarted"
    return find_orphans(folder) or same_end(folder / "run", undisturbed_run(folder))


def stop_rank(rng: random.Random, case: str, folder: Path) -> str:
    """Stop one rank by SIGSTOP; the run must fail and name the rank.

    It must end within ten seconds after the timeout.
    """
    process = start_ranks(folder)
    wait_for_update(folder, rng.randrange(1, STEPS - 1))
    rank = rng.randrange(2)
    pid = sorted_rank_pids(process)[rank]
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
        f"from rank {rank} (" not in end_of_log(folder)
        or f"process {pid})" not in end_of_log(folder)
        or "update " not in status["message"]
    ):
        return f"the stopped rank {rank} is not named: {end_of_log(folder)}"
    return find_orphans(folder)


def signal_ranks(rng: random.Random, case: str, folder: Path) -> str:
    """Send SIGTERM or SIGINT to one rank, both ranks, the launcher, or all of them.

    The run must save a checkpoint and exit, and must resume to the same result.
    """
    number = int(case.split()[1])
    kind = (signal.SIGTERM, signal.SIGINT)[number // len(SIGNALLED) % 2]
    recipient = SIGNALLED[number % len(SIGNALLED)]
    process = start_ranks(folder)
    wait_for_update(folder, rng.randrange(1, STEPS - 2))
    ranks = sorted_rank_pids(process)
    targets = {
        "rank 0": ranks[:1],
        "rank 1": ranks[1:],
        "ranks": ranks,
        "launcher": [process.pid],
        "all": [*ranks, process.pid],
    }[recipient]
    for pid in targets:
        os.kill(pid, kind)
    code = process.wait(WAIT)
    status = json.loads((folder / "run/status.json").read_text())
    if code != 128 + kind or status["exit_code"] != code or status["state"] != "interrupted":
        return f"{kind.name} to {recipient}: exit {code}, status {status}: {end_of_log(folder)}"
    newest = max(int(path.name[5:]) for path in (folder / "run/checkpoints").glob("step_*"))
    if f"stopped after update {newest} and saved" not in status["message"]:
        return f"{kind.name} to {recipient}: the newest checkpoint is {newest}, {status}"
    if problem := find_orphans(folder):
        return problem
    code = start_ranks(folder).wait(WAIT)
    if code:
        return f"the resumed run exited with {code}: {end_of_log(folder)}"
    return same_end(folder / "run", undisturbed_run(folder))


def start_ranks(folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Start the real command with two ranks, with its output in log.txt."""
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


def undisturbed_run(folder: Path) -> Path:
    """Return the folder of an undisturbed run with two ranks, which is trained only once."""

    def make(temporary: Path) -> None:
        assert start_ranks(temporary).wait(WAIT) == 0, end_of_log(temporary)

    return once(folder.parent / "reference-ranks", make) / "run"


def wait_for_update(folder: Path, update: int) -> None:
    """Return once metrics.jsonl contains this update."""
    wait_until(
        lambda: f'"step": {update},' in read(folder / "run/metrics.jsonl"),
        f"metrics.jsonl does not contain update {update}: {end_of_log(folder)}",
    )


def sorted_rank_pids(process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the process ids of the ranks, in rank order."""
    pids = {int(environment(pid)["RANK"]): pid for pid in rank_pids(process)}
    return [pids[rank] for rank in sorted(pids)]


def rank_pids(process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the process ids of the ranks that the launcher has started, in any order."""
    return [
        pid
        for pid in map(int, read(Path(f"/proc/{process.pid}/task/{process.pid}/children")).split())
        if "RANK" in environment(pid)
    ]


def environment(pid: int) -> dict[str, str]:
    """Return the environment variables of a process; entries without `=` are left out."""
    lines = read(Path(f"/proc/{pid}/environ")).split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def find_orphans(folder: Path) -> str:
    """Return a message if processes of the run still exist after three seconds, else ""."""
    remaining: list[int] = []

    def are_gone() -> bool:
        remaining[:] = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if str(folder / "small.yaml") in read(path)
        ]
        return not remaining

    try:
        wait_until(are_gone, "", seconds=3)
    except AssertionError:
        return f"processes still running: {remaining}"
    return ""


def read(path: Path) -> str:
    """Return the text of a file, or "" if the file does not exist or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def end_of_log(folder: Path, length: int = 600) -> str:
    """Return the last `length` characters that the run has printed."""
    return read(folder / "log.txt")[-length:]
