"""Run functions and commands on several ranks, forked from a process that has imported PyTorch.

Starting two ranks this way takes a fraction of a second, because no rank has to import PyTorch.
"""

import contextlib
import os
import pickle
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from survival import warm
from torch.distributed import FileStore

from mt.runtime.world import World


class RankFailedError(AssertionError):
    """A rank has failed; the message contains its exit code and its output."""


def on_ranks(
    size: int,
    work: Callable[[World], Any],
    *,
    timeout: float = 30.0,
    store: Callable[[], Any] | None = None,
) -> list[Any]:
    """Run `work` on `size` ranks; return the results, or raise `RankFailedError` if a rank fails.

    `store` returns a key-value store for a rank; by default, the ranks share a file.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)

        def on_rank(rank: int) -> Callable[[], None]:
            def run() -> None:
                rank_store = (
                    store() if store is not None else FileStore(str(results / "store"), size)
                )
                world = World(
                    rank, size, local_rank=rank, local_size=size, timeout=timeout, store=rank_store
                )
                with world.connected() if size > 1 else contextlib.nullcontext():
                    result = work(world)
                (results / f"result.{rank}").write_bytes(pickle.dumps(result))

            return run

        outputs = [results / f"output.{rank}" for rank in range(size)]
        children = [
            warm.start(on_rank(rank), [os.devnull, outputs[rank], outputs[rank]])
            for rank in range(size)
        ]
        codes = [child.wait() for child in children]
        if any(codes):
            raise RankFailedError(
                "\n".join(
                    f"rank {rank}: exit {codes[rank]}: {path.read_text()}"
                    for rank, path in enumerate(outputs)
                )
            )
        return [pickle.loads((results / f"result.{rank}").read_bytes()) for rank in range(size)]


def mt_on_ranks(
    size: int, *args: Any, stdin: str = "", attempt: int = 0
) -> list["subprocess.CompletedProcess[str]"]:
    """Run the `mt` command on `size` ranks, with the environment variables that `torchrun` sets.

    `stdin` is the standard input of rank 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher_variables = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RESTART_COUNT": attempt,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [
            [Path(folder) / f"{name}.{rank}" for name in ("stdin", "stdout", "stderr")]
            for rank in range(size)
        ]
        children = []
        for rank in range(size):
            files[rank][0].write_text(stdin if rank == 0 else "", encoding="utf-8")
            variables = {**launcher_variables, "RANK": rank, "LOCAL_RANK": rank}
            children.append(warm.start(warm.command(*args), files[rank], environment=variables))
        codes = [child.wait() for child in children]
        outputs = [[path.read_text(encoding="utf-8") for path in paths[1:]] for paths in files]
        return [
            subprocess.CompletedProcess(list(map(str, args)), code, *output)
            for code, output in zip(codes, outputs, strict=True)
        ]
