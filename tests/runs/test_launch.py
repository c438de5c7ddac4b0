"""Real launchers: `mt train --nproc` keeps the exit codes of one process, and a job script for
Slurm goes on after its signal.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt.config import load_config
from mt.runs.launch import slurm_script
from tests.conftest import ROOT, run_mt


@pytest.mark.parametrize(
    ("nproc", "says"),
    [("0", "neither a number"), ("two", "neither a number"), ("gpu", "PyTorch sees no GPU")],
)
def test_a_number_of_processes_that_is_none_exits_2(
    nproc: str, says: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    if nproc == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_mt("train", small_yaml(tmp_path), "--nproc", nproc)
    assert result.returncode == 2
    assert says in result.stderr


def test_two_processes_that_diverge_exit_3_and_are_not_started_again_in_vain(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    options = (
        "--nproc",
        "2",
        "--max-restarts",
        "1",
        "optim.lr=1e30",
        "optim.warmup_steps=0",
        "model.norm=post",
    )
    result = run_mt("train", config, *options, env=dict(os.environ))
    assert result.returncode == 3, result.stderr
    assert result.stderr.count("mt replay") == 2  # as it ended, and why it was not started anew
    assert "not started anew: update" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"


def stub(path: Path, script: str) -> None:
    """A program of a cluster, as far as the job script needs it."""
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_slurm_job_saves_on_its_signal_asks_to_be_queued_again_and_goes_on(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config, programs, job = small_yaml(tmp_path), tmp_path / "bin", tmp_path / "job.sh"
    overrides = (
        "train.max_steps=150",
        "train.log_every=1",
        "train.valid_every=100",
        "train.save_every=100",
    )
    printed = run_mt(
        "launch",
        "slurm",
        config,
        *overrides,
        "--nodes",
        "1",
        "--nproc",
        "2",
        "--option=--partition=long",
    ).stdout
    for line in ("--nodes=1", "--requeue", "--signal=TERM@180", "--partition=long"):
        assert f"#SBATCH {line}\n" in printed
    job.write_text(printed)
    programs.mkdir()
    stub(programs / "srun", 'exec "$@"')
    stub(
        programs / "scontrol",
        f'if [ "$1" = requeue ]; then echo "$2" >> {tmp_path}/requeued; else echo localhost; fi',
    )
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    process = subprocess.Popen(
        ["bash", job], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    for pid in step_processes(
        config
    ):  # Slurm signals every process of a step, and the launcher passes it on besides
        os.kill(pid, signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (process.returncode != 0, status["state"], status["exit_code"]) == (
        True,
        "interrupted",
        143,
    ), said
    assert (tmp_path / "requeued").read_text() == f"{os.getpid()}\n"
    assert step_processes(config) == []
    again = subprocess.run(
        ["bash", job],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "going on from" in again.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    assert (tmp_path / "requeued").read_text() == f"{os.getpid()}\n"
    steps = [
        line["step"]
        for line in map(json.loads, metrics.read_text().splitlines())
        if line["kind"] == "train"
    ]
    assert steps == list(range(1, 151))


def step_processes(config: Path) -> list[int]:
    """The launcher and its ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if str(config) in words and words[0] == sys.executable:
            found.append(int(path.parent.name))
    return found


def test_a_job_of_a_cpu_asks_for_no_gpu_and_quotes_its_paths(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    loaded = load_config(small_yaml(folder))
    script = slurm_script(
        loaded, ["train", str(folder / "small.yaml")], nodes=3, nproc=4, options=[]
    )
    assert "gpu" not in script
    assert f"'{folder}/small.yaml'" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "--gpus-per-node=4" in slurm_script(
        load_config(small_yaml(folder), ["device=cuda"]), ["train"], 1, 4, []
    )
