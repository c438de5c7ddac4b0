"""Ranks as forked children of a warm process: a world of two costs tenths of a second, not two imports of PyTorch."""

import contextlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp  # both warmed for every child
from torch.distributed import FileStore

from mt.distributed import World
from tests.conftest import ROOT, become_mt


class RankFailedError(AssertionError):
    """A rank raised something, which is in the message."""


def on_ranks(size: int, work: Callable[[World], Any], *, timeout: float = 30.0, store: Callable[[], Any] | None = None) -> list[Any]:
    """What `work` gives on each of `size` ranks. An exception of a rank raises here."""
    with tempfile.TemporaryDirectory() as folder:
        pids = [_fork(rank, size, work, Path(folder), timeout, store) for rank in range(size)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [(Path(folder) / f"said.{rank}").read_text() for rank in range(size)]
        if any(codes):
            raise RankFailedError("\n".join(f"rank {rank}: exit {codes[rank]}: {text}" for rank, text in enumerate(said)))
        return [pickle.loads((Path(folder) / f"result.{rank}").read_bytes()) for rank in range(size)]


def _fork(rank: int, size: int, work: Callable[[World], Any], folder: Path, timeout: float, store: Callable[[], Any] | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        descriptor = os.open(folder / f"said.{rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        torch.set_num_threads(1)
        common = store() if store is not None else FileStore(str(folder / "store"), size)
        world = World(rank, size, local_rank=rank, local_size=size, timeout=timeout, store=common)
        with world.member() if size > 1 else contextlib.nullcontext():
            result = work(world)
        (folder / f"result.{rank}").write_bytes(pickle.dumps(result))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def mt_on_ranks(size: int, *args: Any, stdin: str = "", attempt: int = 0) -> list["subprocess.CompletedProcess[str]"]:
    """The real command on each of `size` ranks, in the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place["TORCHELASTIC_RESTART_COUNT"] = attempt
    with tempfile.TemporaryDirectory() as folder:
        files = [[Path(folder) / f"{name}.{rank}" for name in ("stdin", "stdout", "stderr")] for rank in range(size)]
        pids = []
        for rank in range(size):
            files[rank][0].write_text(stdin if rank == 0 else "", encoding="utf-8")
            if not (pid := os.fork()):
                os.environ.update({name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()})
                become_mt(["mt", *map(str, args)], files[rank], ROOT)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        said = [[path.read_text(encoding="utf-8") for path in own[1:]] for own in files]
        return [subprocess.CompletedProcess(list(map(str, args)), code, *own) for code, own in zip(codes, said, strict=True)]
