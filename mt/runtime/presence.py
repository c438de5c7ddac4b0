"""Find out which ranks of a run are alive, and kill ranks that have stopped responding.

The ranks register and send heartbeats through PyTorch's key-value store, which still works when a
collective hangs.
"""

import contextlib
import ctypes
import datetime
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from mt.errors import RankLostError

# All ranks must start within this many seconds. They may import PyTorch from a slow network drive.
START_TIMEOUT = 1800.0
ROLL_CALL = 5.0  # the other ranks must report within this many seconds that they are alive
STORE_GONE = "lost the connection to the first machine, which holds the key-value store"
# Parts of PyTorch's messages about another rank that has ended or does not respond.
RANK_LOST_MESSAGES = (
    "closed by peer",
    "reset by peer",
    "Connection closed",
    "Timed out waiting",
    "Application timeout",
    "Broken pipe",
    "NCCL",
)


class Presence:
    """Tracks which ranks of a run are alive, using a key-value store shared by all."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        """A rank that does not respond for `timeout` seconds counts as lost."""
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.ranks: list[dict[str, Any]] = []  # host name and process id of each rank
        # Whether this rank reports errors to the user: only rank 0 does, or the lowest rank alive.
        self.is_reporter = rank == 0

    def register(self) -> None:
        """Register this rank in the store, and wait until all ranks have done so.

        A launcher that restarts its ranks keeps the store, so it may contain entries of dead ranks.
        Therefore rank 0 chooses a new random name at each start. When all ranks have registered
        under this name, rank 0 publishes a list of the ranks. A rank that has read an old name is
        not in the list for that name, and tries again.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        this_rank = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": uuid.uuid4().hex}
        if self.rank == 0:
            self.store.set("world", this_rank["nonce"])
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            name = self.store.get("world").decode()
            self.store.set(f"{name}/rank/{self.rank}", json.dumps(this_rank))
            if self.rank == 0:
                self._publish_ranks(name)
            if self._appears(f"{name}/all", 0.2):
                self.ranks = json.loads(self.store.get(f"{name}/all"))
                if this_rank in self.ranks:
                    self.store = PrefixStore(name, self.store)
                    return
            time.sleep(0.02)
        raise RankLostError(f"rank {self.rank}: rank 0 did not start within {START_TIMEOUT:g} s")

    def _publish_ranks(self, name: str) -> None:
        """Wait until all ranks have registered under `name`, and publish a list of the ranks."""
        keys = [f"{name}/rank/{rank}" for rank in range(self.size)]
        self.store.wait(keys, datetime.timedelta(seconds=START_TIMEOUT))
        ranks = [json.loads(self.store.get(key)) for key in keys]
        self.store.set(f"{name}/all", json.dumps(ranks))

    def leave_together(self) -> None:
        """Wait until all ranks are ready to exit.

        The launcher stops all ranks as soon as one exits, so a rank that exits early could
        interrupt the last writes of rank 0.
        """
        with contextlib.suppress(RankLostError, RuntimeError):  # another rank has already exited
            if self.rank == 0:
                self.store.set("end", "")
                # The other ranks must read `end` first, as the store may end with this process.
                end = time.monotonic() + ROLL_CALL
                while self.store.add("left", 0) < self.size - 1 and time.monotonic() < end:
                    time.sleep(0.01)
            else:
                self._appears("end", self.timeout)
                self.store.add("left", 1)

    def publish_answer(self, key: str, answer: dict[str, Any]) -> None:
        """Store the answer under `key`, where the other ranks wait for it."""
        self.store.set(key, json.dumps(answer))

    @contextlib.contextmanager
    def heartbeat(self, key: str) -> Iterator[None]:
        """While the block runs, show the ranks that wait for `key` that this process is alive."""
        ended = threading.Event()

        def beat() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone, so no rank is waiting
                while not ended.wait(min(1.0, self.timeout / 5)):
                    self.store.add(f"{key}/beat", 1)

        thread = threading.Thread(target=beat, name="mt-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def wait_for_rank0_or_kill_it(self, key: str) -> dict[str, Any]:
        """Wait until rank 0 publishes an answer under `key`, and return it.

        There is no time limit while the heartbeat of rank 0 continues. If the heartbeat stops for
        `timeout` seconds, raises `RankLostError`. If rank 0 is on this machine, it is also killed.
        """
        last_beat, since = 0, time.monotonic()
        while not self._appears(key, 0.5):
            beat = self.store.add(f"{key}/beat", 0)
            if beat != last_beat:
                last_beat, since = beat, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                self.is_reporter = self.rank == 1
                self._kill_local([0])
                raise RankLostError(self._no_answer_from([0]))
        answer = json.loads(self.store.get(key))
        if self.store.add(f"{key}/read", 1) == self.size - 1:  # all other ranks have also read it
            for name in (key, f"{key}/beat", f"{key}/read"):
                self.store.delete_key(name)
        return answer

    def _appears(self, key: str, seconds: float) -> bool:
        """Wait at most `seconds` for a key, and return whether it exists.

        The store's own `wait` is not used because it prints a warning to stderr at each timeout.
        """
        end, pause = time.monotonic() + seconds, 0.001
        try:
            while not self.store.check([key]):
                if time.monotonic() > end:
                    return False
                time.sleep(pause)
                pause = min(2 * pause, 0.1)
        except RuntimeError as error:
            raise RankLostError(STORE_GONE) from error
        return True

    def means_lost_rank(self, error: BaseException) -> bool:
        """Whether PyTorch raises `error` because another rank has ended or does not respond."""
        return (
            self.size > 1
            and isinstance(error, RuntimeError)
            and any(text in str(error) for text in RANK_LOST_MESSAGES)
        )

    def kill_lost_ranks(self, error: BaseException) -> str:
        """Kill the ranks on this machine that do not respond; return a message that names them.

        Call this only if `means_lost_rank(error)`. The ranks are killed because a stopped process
        would not end by itself. From now on, the lowest rank alive reports errors to the user.
        """
        try:
            self.store.set(f"alive/{self.rank}", "")
            if "Timed out" not in str(error):
                return f"another rank has ended, so rank {self.rank} cannot continue"
            end = time.monotonic() + ROLL_CALL
            while (missing := self._missing_ranks()) and time.monotonic() < end:
                time.sleep(0.1)
            self.is_reporter = self.rank == min(set(range(self.size)) - set(missing))
            self._kill_local(missing)
            return self._no_answer_from(missing)
        except RuntimeError:
            return STORE_GONE

    def _missing_ranks(self) -> list[int]:
        """Return the ranks that have not reported that they are alive."""
        return [rank for rank in range(self.size) if not self.store.check([f"alive/{rank}"])]

    def _kill_local(self, ranks: Sequence[int]) -> None:
        """Kill the processes of `ranks` that run on this machine."""
        for rank in ranks:
            if self.ranks[rank]["host"] == socket.gethostname():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.ranks[rank]["pid"], signal.SIGKILL)

    def _no_answer_from(self, ranks: Sequence[int]) -> str:
        """Return the message for `ranks` that did not respond in time."""
        if not ranks:
            return (
                f"all ranks are alive, but waited {self.timeout:g} s for each other (train.timeout)"
            )
        processes = [
            f"rank {r} ({self.ranks[r]['host']}, process {self.ranks[r]['pid']})" for r in ranks
        ]
        return f"no answer for {self.timeout:g} s from {', '.join(processes)} (train.timeout)"


def die_with_parent(parent: int) -> None:
    """Make Linux kill this process when `parent`, the process that started it, dies.

    On other systems, this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1  # from sys/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)
