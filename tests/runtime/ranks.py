"""Ranks as children of a warm process: a world of two costs tenths of a second, not two imports of
PyTorch.
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
    """A rank raised something, which is in the message."""


def on_ranks(
    size: int,
    work: Callable[[World], Any],
    *,
    timeout: float = 30.0,
    store: Callable[[], Any] | None = None,
) -> list[Any]:
    """What `work` gives on each of `size` ranks. An exception of a rank raises here."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)

        def member(rank: int) -> Callable[[], None]:
            def run() -> None:
                common = store() if store is not None else FileStore(str(place / "store"), size)
                world = World(
                    rank, size, local_rank=rank, local_size=size, timeout=timeout, store=common
                )
                with world.connected() if size > 1 else contextlib.nullcontext():
                    result = work(world)
                (place / f"result.{rank}").write_bytes(pickle.dumps(result))

            return run

        said = [place / f"said.{rank}" for rank in range(size)]
        children = [
            warm.start(member(rank), [os.devnull, said[rank], said[rank]]) for rank in range(size)
        ]
        codes = [child.wait() for child in children]
        if any(codes):
            raise RankFailedError(
                "\n".join(
                    f"rank {rank}: exit {codes[rank]}: {path.read_text()}"
                    for rank, path in enumerate(said)
                )
            )
        return [pickle.loads((place / f"result.{rank}").read_bytes()) for rank in range(size)]


def mt_on_ranks(
    size: int, *args: Any, stdin: str = "", attempt: int = 0
) -> list["subprocess.CompletedProcess[str]"]:
    """The real command on each of `size` ranks, in the environment that a launcher gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    place["TORCHELASTIC_RESTART_COUNT"] = attempt
    with tempfile.TemporaryDirectory() as folder:
        files = [
            [Path(folder) / f"{name}.{rank}" for name in ("stdin", "stdout", "stderr")]
            for rank in range(size)
        ]
        children = []
        for rank in range(size):
            files[rank][0].write_text(stdin if rank == 0 else "", encoding="utf-8")
            variables = {**place, "RANK": rank, "LOCAL_RANK": rank}
            children.append(warm.start(warm.command(*args), files[rank], environment=variables))
        codes = [child.wait() for child in children]
        said = [[path.read_text(encoding="utf-8") for path in own[1:]] for own in files]
        return [
            subprocess.CompletedProcess(list(map(str, args)), code, *own)
            for code, own in zip(codes, said, strict=True)
        ]
