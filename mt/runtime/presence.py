"""Who is there: the ranks' names, their signs of life, and the roll call when one is missed. All
through PyTorch's key-value store.
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

START_TIMEOUT = (
    1800.0  # seconds until all ranks must be there: Python and PyTorch may come over a slow network
)
ROLL_CALL = 5.0  # seconds that ranks have to answer when one is missed
STORE_GONE = "the first machine has left, and with it the store that holds the ranks together"
# What PyTorch's errors say where another process has left, or does not answer.
LOST = (
    "closed by peer",
    "reset by peer",
    "Connection closed",
    "Timed out waiting",
    "Application timeout",
    "Broken pipe",
    "NCCL",
)


class Presence:
    """The ranks of a world as their store knows them."""

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        """`timeout`: seconds without a sign of life after which a rank counts as lost."""
        self.store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.ranks: list[dict[str, Any]] = []  # host and process of each
        self.speaks = (
            rank == 0
            # whether this rank tells the user of an end: the first one does, or the first of those that
            # are left
        )

    def introduce(self) -> None:
        """Say who this is, wait until all are there, and agree on a part of the store for this
        world alone.

        A launcher keeps its store when it starts anew, so all that stands in it may be of ranks
        that are dead: the first rank names the world, and its list of those who came to that name
        is believed by those who find themselves in it.
        """
        from torch.distributed.distributed_c10d import PrefixStore

        me = {"host": socket.gethostname(), "pid": os.getpid(), "nonce": uuid.uuid4().hex}
        if self.rank == 0:
            self.store.set("world", me["nonce"])
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            name = self.store.get("world").decode()
            self.store.set(f"{name}/rank/{self.rank}", json.dumps(me))
            if self.rank == 0:
                keys = [f"{name}/rank/{rank}" for rank in range(self.size)]
                self.store.wait(keys, datetime.timedelta(seconds=START_TIMEOUT))
                self.store.set(
                    f"{name}/all", json.dumps([json.loads(self.store.get(key)) for key in keys])
                )
            if self._is_there(f"{name}/all", 0.2) and me in (
                ranks := json.loads(self.store.get(f"{name}/all"))
            ):
                self.ranks, self.store = ranks, PrefixStore(name, self.store)
                return
            time.sleep(0.02)
        raise RankLostError(
            f"rank {self.rank}: the first rank did not come within {START_TIMEOUT:g} s"
        )

    def leave(self) -> None:
        """End with the others: a launcher takes the first end for the end of all, and would disturb
        the last writes of the first rank.
        """
        with contextlib.suppress(RankLostError, RuntimeError):  # somebody was faster
            if self.rank == 0:
                self.store.set("end", "")
                end = time.monotonic() + ROLL_CALL  # the store may end with this process
                while self.store.add("left", 0) < self.size - 1 and time.monotonic() < end:
                    time.sleep(0.01)
            else:
                self._is_there("end", self.timeout)
                self.store.add("left", 1)

    def tell(self, key: str, answer: dict[str, Any]) -> None:
        """Give the other ranks the answer that they wait for."""
        self.store.set(key, json.dumps(answer))

    @contextlib.contextmanager
    def signs_of_life(self, key: str) -> Iterator[None]:
        """Show those who wait for the answer that this process is alive, while the block works on
        it.
        """
        ended = threading.Event()

        def beat() -> None:
            with contextlib.suppress(
                RuntimeError
            ):  # the store is gone, and with it all who might look
                while not ended.wait(min(1.0, self.timeout / 5)):
                    self.store.add(f"{key}/beat", 1)

        thread = threading.Thread(target=beat, name="mt-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def answer(self, key: str) -> dict[str, Any]:
        """What the first rank tells, however long it takes. Raises `RankLostError` where it shows
        no sign of life.
        """
        last, since = 0, time.monotonic()
        while not self._is_there(key, 0.5):
            beat = self.store.add(f"{key}/beat", 0)
            if beat != last:
                last, since = beat, time.monotonic()
            elif time.monotonic() - since > self.timeout:
                self.speaks = self.rank == 1
                raise RankLostError(self._dismissed([0]))
        answer = json.loads(self.store.get(key))
        if self.store.add(f"{key}/read", 1) == self.size - 1:
            for name in (key, f"{key}/beat", f"{key}/read"):
                self.store.delete_key(name)
        assert isinstance(answer, dict)
        return answer

    def _is_there(self, key: str, seconds: float) -> bool:
        """Whether a key comes within some time. (The store's own `wait` writes a warning to stderr
        whenever it has waited in vain.)
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

    def lost(self, error: BaseException) -> str | None:
        """What to say of `error` where it comes of another rank that ended or fell silent; None
        where it does not.

        A silent rank is named, and killed where it is on this machine: nothing else would end a
        stopped process. The first of the others `speaks` from here on.
        """
        if (
            self.size == 1
            or not isinstance(error, RuntimeError)
            or not any(text in str(error) for text in LOST)
        ):
            return None
        try:
            self.store.set(f"here/{self.rank}", "")
            if "Timed out" not in str(error):
                return f"another rank has ended, so rank {self.rank} cannot go on"
            began = time.monotonic()
            while (missing := self._missing()) and time.monotonic() - began < ROLL_CALL:
                time.sleep(0.1)
            self.speaks = self.rank == min(set(range(self.size)) - set(missing))
            return self._dismissed(missing)
        except RuntimeError:
            return STORE_GONE

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.size) if not self.store.check([f"here/{rank}"])]

    def _dismissed(self, silent: Sequence[int]) -> str:
        if not silent:
            return f"the ranks have waited for one another for {self.timeout:g} s, and all are there (train.timeout)"
        names = []
        for rank in silent:
            about = self.ranks[rank]
            names.append(f"rank {rank} ({about['host']}, process {about['pid']})")
            if about["host"] == socket.gethostname():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(about["pid"], signal.SIGKILL)
        return f"no answer for {self.timeout:g} s from {', '.join(names)} (train.timeout)"


def die_with(parent: int) -> None:
    """Let the system kill this process when `parent`, which started it, dies (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1  # of sys/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)
