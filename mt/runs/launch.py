"""Launchers: `mt train --nproc` uses torchrun's launcher, and `mt launch` prints Slurm scripts."""

import logging
import os
import re
import shlex
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch

from mt.artifacts import RunFolder
from mt.config import Config
from mt.errors import ConfigError
from mt.runtime.environment import num_cores

SHUTDOWN_TIMEOUT = 150  # seconds that ranks have to finish an update and save after a signal
SLURM = """#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
{options}#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@{notice}
# Before the time limit and on preemption, Slurm sends SIGTERM to all ranks, and they save a
# checkpoint. The job is then requeued and resumes from that checkpoint. The run folder and
# cache_dir must be on a file system that all nodes share.
set -uo pipefail

started=$(mktemp)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {python} -m torch.distributed.run \\
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node {nproc} \\
    --max-restarts 3 --shutdown-timeout {shutdown} \\
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" \\
    --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \\
    -m mt {arguments}
code=$?

if [ {status} -nt "$started" ] && grep -q '"state": "interrupted"' {status}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def launch(config: Config, nproc: str, arguments: Sequence[str], max_restarts: int) -> int:
    """Run `mt` with these arguments in `nproc` processes, one per rank.

    Returns the exit code that a single process would have.

    If a rank dies, all ranks are restarted, up to `max_restarts` times. Raises `ConfigError` if
    `nproc` is not a positive number or "gpu" (one process per GPU).
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = _count(nproc)
    cores = config.threads or num_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    if sys.platform.startswith("linux"):
        # All ranks are on this machine, even if its host name resolves to another address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # The ranks report their own errors.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=max_restarts,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    try:
        elastic_launch(agent, sys.executable)("-m", "mt", *arguments)
        return 0
    except SignalException as error:
        code = 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 1
        if failure.exitcode < 0:
            sys.stderr.write(
                f"rank {rank} was killed by {signal.Signals(-failure.exitcode).name}\n"
            )
    run = RunFolder(Path(str(config.run_dir)))
    if run.status().get("state") == "running":  # no rank could update it
        run.write_status(state="failed", exit_code=code, message="a rank was killed")
    return code


def slurm_script(
    config: Config, arguments: Sequence[str], nodes: int, nproc: int, options: Sequence[str]
) -> str:
    """Return a job script for `sbatch` that runs `mt` with these arguments, `nproc` ranks per node.

    Each rank uses one GPU unless the device is `cpu`. The job resumes after preemption and time
    limits. `options` are additional options of sbatch, such as `--partition=gpu`.
    """
    run = RunFolder(Path(str(config.run_dir)).resolve())
    gpus = [] if config.device == "cpu" else [f"--gpus-per-node={nproc}"]
    return SLURM.format(
        name=re.sub(r"[^\w.-]", "_", f"mt-{run.path.name}"),
        nodes=nodes,
        nproc=nproc,
        python=shlex.quote(sys.executable),
        options="".join(f"#SBATCH {option}\n" for option in [*gpus, *options]),
        notice=SHUTDOWN_TIMEOUT + 30,
        shutdown=SHUTDOWN_TIMEOUT,
        arguments=shlex.join(arguments),
        status=shlex.quote(str(run.status_path)),
    )


def _count(nproc: str) -> int:
    if nproc == "gpu":
        if not torch.cuda.is_available():
            raise ConfigError("--nproc gpu: PyTorch finds no GPU; give a number")
        return torch.cuda.device_count()
    if not nproc.isdecimal() or int(nproc) < 1:
        raise ConfigError(f"--nproc {nproc}: must be a positive number or gpu")
    return int(nproc)
