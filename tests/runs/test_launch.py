"""Real launchers: `mt train --nproc` keeps the exit codes of a single process, and a Slurm job
resumes after SIGTERM.
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
    ("nproc", "message"),
    [("0", "a positive number"), ("two", "a positive number"), ("gpu", "PyTorch finds no GPU")],
)
def test_an_impossible_number_of_processes_exits_2(
    nproc: str, message: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    if nproc == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = run_mt("train", small_yaml(tmp_path), "--nproc", nproc)
    assert result.returncode == 2
    assert message in result.stderr


def test_two_processes_that_diverge_exit_3_and_are_not_restarted(
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
    # The error is printed when training diverges, and again as the reason for not restarting.
    assert result.stderr.count("mt replay") == 2
    assert "not restarted: update" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"


def stub(path: Path, script: str) -> None:
    """Write a fake Slurm program that does just what the job script needs."""
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_slurm_job_saves_on_sigterm_requeues_itself_and_resumes(
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
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }
    process = subprocess.Popen(
        ["bash", job], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    metrics, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and '"step": 5,' in metrics.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    # Slurm signals all processes of a job step; in addition, the launcher forwards the signal.
    for pid in step_processes(config):
        os.kill(pid, signal.SIGTERM)
    stderr = process.communicate(timeout=120)[1]
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (process.returncode != 0, status["state"], status["exit_code"]) == (
        True,
        "interrupted",
        143,
    ), stderr
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
    assert "resuming from" in again.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
    assert (tmp_path / "requeued").read_text() == f"{os.getpid()}\n"
    steps = [
        line["step"]
        for line in map(json.loads, metrics.read_text().splitlines())
        if line["kind"] == "train"
    ]
    assert steps == list(range(1, 151))


def step_processes(config: Path) -> list[int]:
    """Return the process ids of the launcher and its ranks."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
        except OSError:
            continue
        if str(config) in words and words[0] == sys.executable:
            pids.append(int(path.parent.name))
    return pids


def test_a_cpu_job_requests_cpus_only_and_quotes_its_paths(
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
