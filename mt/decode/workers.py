"""Several processes that share the work: forked from this one, so that they share its model, and nothing is loaded again.

On a CPU a process of one thread to each core translates faster than one process of many threads, as threads wait for one another after each
product.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from mt.device import Compute
from mt.distributed.presence import die_with
from mt.errors import ConfigError, MTError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workers:
    """`count` processes that share `threads` threads; with a count of 1 the work is done in this process."""

    count: int = 1
    threads: int = 1

    @classmethod
    def choose(cls, count: int | None, compute: Compute) -> "Workers":
        """`count` processes that share the threads that PyTorch has here; None: one to each thread, on a CPU.

        Where there are several, this process itself computes with one thread from here on: a pool of threads would not survive a fork.
        Raises `ConfigError` for several on a GPU, or on a system that cannot fork.
        """
        can_share = compute.device.type == "cpu" and sys.platform == "linux"
        threads = torch.get_num_threads()
        if count is None:
            count = threads if can_share else 1
        if count < 1 or (count > 1 and not can_share):
            raise ConfigError(f"workers: {count} is not possible; several processes need a CPU under Linux")
        if count > 1:
            torch.set_num_threads(1)
        return cls(count, threads)

    def map(self, work: Callable[[T], R], items: Sequence[T]) -> Generator[R, None, None]:
        """`work` of each item, in order. Raises what `work` raises, and `MTError` where a process is killed.

        Where there are fewer items than processes, each process has more threads.
        """
        if self.count == 1 or not items:
            yield from map(work, items)
            return
        context = multiprocessing.get_context("fork")
        count = min(self.count, len(items))
        processes, ends = [], []
        try:
            for _ in range(count):
                end, other_end = context.Pipe()
                arguments = (other_end, work, max(1, self.threads // count), os.getpid())
                processes.append(context.Process(target=_serve, args=arguments, daemon=True))
                processes[-1].start()
                other_end.close()  # so that the death of the process closes it for good
                ends.append(end)
            yield from _in_order(ends, items)
        finally:  # all is done, or nobody waits for what they do
            for process, end in zip(processes, ends, strict=False):
                process.kill()
                process.join()
                end.close()


def _in_order(ends: Sequence[Connection], items: Sequence[Any]) -> Iterator[Any]:
    """Hand out `items` one by one to whoever is free, and give the results in order."""
    jobs = iter(enumerate(items))
    finished: dict[int, Any] = {}
    for end, job in zip(ends, jobs, strict=False):
        end.send(job)
    for number in range(len(items)):
        while number not in finished:
            for ready in connection.wait(ends):
                assert isinstance(ready, Connection)
                index, result, error = _receive(ready)
                if error is not None:
                    raise error
                finished[index] = result
                for job in itertools.islice(jobs, 1):
                    ready.send(job)
        yield finished.pop(number)


def _receive(end: Connection) -> Any:
    try:
        return end.recv()
    except (EOFError, OSError) as error:
        raise MTError("a worker process was killed (was memory short? use fewer --workers, or a smaller --batch-size)") from error


def _serve(end: Connection, work: Callable[[Any], Any], threads: int, parent: int) -> None:
    """The life of a worker: a result, or the error instead, for each item that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with(parent)
    # In a thread of its own: OpenMP believes that this one still has the parent's pool of threads, which no fork takes along, and waits.
    computing = threading.Thread(target=_compute, args=(end, work, threads))
    computing.start()
    computing.join()


def _compute(end: Connection, work: Callable[[Any], Any], threads: int) -> None:
    torch.set_num_threads(threads)
    while True:
        index, item = end.recv()
        try:
            end.send((index, work(item), None))
        except Exception as error:
            error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            end.send((index, None, error))
