"""A run is killed every 3 to 20 s, as on spot machines, until it ends; it repeats few updates."""

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

from survival.harness import ROOT, same_end, train, write_config

TITLE = "killed every 3 to 20 s until done: at most 1.3 times the updates"
BOUND = 1.3  # the most updates computed, including repeated ones, per update of the run


def cases(full: bool) -> list[str]:
    """Return a single case. If not `full`, it is short, and the run is killed only a few times."""
    return ["life 6000 steps" if full else "life 2000 steps"]


def run(case: str, folder: Path) -> str:
    """Kill the real command and start it again until it ends by itself."""
    steps, rng = int(case.split()[1]), random.Random(case)
    options = (f"train.max_steps={steps}", "train.save_every=100", "train.valid_every=1000")
    undisturbed, config = write_config(folder / "undisturbed"), write_config(folder / "killed")
    if code := train(undisturbed, *options):
        return f"the undisturbed run exited with {code}"
    kills = 0
    while True:
        with (folder / "killed/log.txt").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mt", "train", str(config), *options],
                cwd=ROOT,
                stderr=log,
                stdout=log,
            )
            try:
                code = process.wait(timeout=rng.uniform(3, 20))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                kills += process.wait() == -signal.SIGKILL
    if code:
        return f"exit {code} after {kills} kills"
    done = len(re.findall(r" update \d+/", (folder / "killed/run/train.log").read_text()))
    print(f"{kills} kills, {done:,} updates computed for {steps:,}: {done / steps:.2f} times")
    if done > BOUND * steps:
        return f"{done:,} updates computed for {steps:,}"
    return same_end(folder / "killed/run", folder / "undisturbed/run", steps)
