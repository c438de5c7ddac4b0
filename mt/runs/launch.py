"""`mt train --nproc`: the ranks of one machine, started and watched by torchrun's own agent in this
process; and job scripts for Slurm.
"""

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
# Before its time is up, and when it is preempted, the job's ranks get SIGTERM: all save the same update. The job then goes back into the
# queue and goes on from there. The run folder and cache_dir must be on a file system that all nodes see.
set -uo pipefail

started=$(mktemp)
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {python} -m torch.distributed.run \\
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node {nproc} --max-restarts 3 --shutdown-timeout {shutdown} \\
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:$((20000 + SLURM_JOB_ID % 20000))" \\
    -m mt {arguments}
code=$?

if [ {status} -nt "$started" ] && grep -q '"state": "interrupted"' {status}; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def launch(config: Config, nproc: str, arguments: Sequence[str], max_restarts: int) -> int:
    """Run `mt` with these arguments as `nproc` ranks; gives the exit code that one process would
    have given.

    After a rank has died, all are started anew up to `max_restarts` times. Raises `ConfigError` for
    a number that is none.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = _count(nproc)
    cores = config.threads or num_cores()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    if sys.platform.startswith("linux"):
        os.environ.setdefault(
            "GLOO_SOCKET_IFNAME", "lo"
        )  # all are on this machine, whatever its name resolves to
    logging.getLogger("torch.distributed.elastic").setLevel(
        logging.CRITICAL
    )  # the ranks speak for themselves
    agent = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        local_addr="localhost", max_restarts=max_restarts, shutdown_timeout=SHUTDOWN_TIMEOUT,
    )  # fmt: skip
    try:
        elastic_launch(agent, sys.executable)("-m", "mt", *arguments)
        return 0
    except SignalException as error:
        code = 128 + error.sigval
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode > 0 else 1
        if failure.exitcode < 0:
            sys.stderr.write(f"rank {rank} was ended by {signal.Signals(-failure.exitcode).name}\n")
    run = RunFolder(Path(str(config.run_dir)))
    if run.status().get("state") == "running":  # no rank could say it
        run.write_status(state="failed", exit_code=code, message="a rank was killed")
    return code


def slurm_script(
    config: Config, arguments: Sequence[str], nodes: int, nproc: int, options: Sequence[str]
) -> str:
    """A job script for `sbatch` that runs `mt` with these arguments as `nproc` ranks, each with its
    GPU, on every node.

    It goes on after preemption and time limits. `options` are further ones of sbatch, such as
    `--partition=gpu`.
    """
    run = RunFolder(Path(str(config.run_dir)).resolve())
    gpus = [] if config.device == "cpu" else [f"--gpus-per-node={nproc}"]
    return SLURM.format(
        name=re.sub(r"[^\w.-]", "_", f"mt-{run.path.name}"), nodes=nodes, nproc=nproc, python=shlex.quote(sys.executable),
        options="".join(f"#SBATCH {option}\n" for option in [*gpus, *options]), notice=SHUTDOWN_TIMEOUT + 30, shutdown=SHUTDOWN_TIMEOUT,
        arguments=shlex.join(arguments), status=shlex.quote(str(run.status_path)),
    )  # fmt: skip


def _count(nproc: str) -> int:
    if nproc == "gpu":
        if not torch.cuda.is_available():
            raise ConfigError("--nproc gpu: PyTorch sees no GPU here; give a number")
        return torch.cuda.device_count()
    if not nproc.isdecimal() or int(nproc) < 1:
        raise ConfigError(f"--nproc {nproc}: neither a number of processes nor gpu")
    return int(nproc)
