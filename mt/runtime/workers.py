"""Processes that share the work, and the memory of its model; they stay up between calls.

On a CPU a process of one thread to each core translates faster than one process of many threads,
as threads wait for one another after each product. The processes are forked from a template that
has not computed (see `mt.runtime.template`), never from this one.
"""

import contextlib
import itertools
import logging
import logging.handlers
import sys
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from mt.errors import ConfigError, MTError
from mt.runtime.device import Compute
from mt.runtime.memory import keep_freed_memory, release_freed_memory
from mt.runtime.sharing import SharedWork, receive_work
from mt.runtime.template import Child, worker_template

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = 0.05  # seconds that a thread waits for results before another one may hand out work


@dataclass(frozen=True)
class _Job:
    """One item of a call of `map`."""

    number: int
    threads: int
    work: SharedWork[Any, Any]
    item: Any


@dataclass(frozen=True)
class _Failure:
    """In place of a result."""

    error: BaseException


class Workers:
    """`count` processes that share `threads` threads; if it is 1, this process does the work.

    They start when they are first needed. Several threads of this process may use them at once.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self.threads = count, threads
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._waiting: deque[_Job] = deque()
        self._results: dict[int, Any] = {}  # by the number of the job
        self._pool: list[_Worker] = []
        weakref.finalize(self, _end, self._pool)

    def close(self) -> None:
        """End the processes; at the latest they end with this object."""
        _end(self._pool)

    @classmethod
    def choose(cls, count: int | None, compute: Compute) -> "Workers":
        """`count` processes that share the threads of `compute`; None: one process per thread, on a
        CPU.

        Raises `ConfigError` for several on a GPU, or on a system other than Linux.
        """
        can_share = compute.device.type == "cpu" and sys.platform == "linux"
        threads = compute.num_threads
        if count is None:
            count = threads if can_share else 1
        if count < 1 or (count > 1 and not can_share):
            raise ConfigError(
                f"workers: {count} is not possible; several processes need a CPU under Linux"
            )
        if count > 1:
            worker_template()  # which imports while this process loads the model
        return cls(count, threads)

    def share(self, work: Callable[[T], R]) -> Callable[[T], R] | SharedWork[T, R]:
        """`work` as `map` takes it again and again.

        For several processes it is copied to memory that all map; this one need not keep its own.
        """
        return work if self.count == 1 else SharedWork(work)

    def map(
        self, work: Callable[[T], R] | SharedWork[T, R], items: Sequence[T]
    ) -> Generator[R, None, None]:
        """`work` of each item, in order.

        Raises what `work` raises, and `MTError` if a process is killed. If there are fewer items
        than processes, each process has more threads. Several processes need work, items and
        results that can be pickled.
        """
        if not items:
            return
        is_temporary = not isinstance(work, SharedWork)
        if not isinstance(work, SharedWork):
            if self.count == 1:
                yield from map(work, items)
                return
            work = SharedWork(work)
        threads = max(1, self.threads // min(self.count, len(items)))
        jobs = [_Job(next(self._numbers), threads, work, item) for item in items]
        with self._lock:
            self._waiting.extend(jobs)
        try:
            for job in jobs:
                yield self._result(job)
        finally:
            self._forget({job.number for job in jobs}, work if is_temporary else None)

    def _result(self, job: _Job) -> Any:
        """Work on all calls together until this job is done. Raises its error."""
        while True:
            with self._lock:
                self._hand_out()
                if job.number not in self._results:
                    self._receive()
                if job.number in self._results:
                    result = self._results.pop(job.number)
                    break
        if isinstance(result, _Failure):
            raise result.error
        return result

    def _hand_out(self) -> None:
        """Give jobs to whoever is free; start processes as long as there are too few."""
        idle = [worker for worker in self._pool if worker.job is None]
        while self._waiting and (idle or len(self._pool) < self.count):
            if not idle:
                idle.append(_Worker())
                self._pool.append(idle[0])
            with self._unless_killed(worker := idle.pop(0)):
                worker.give(self._waiting.popleft())

    def _receive(self) -> None:
        """Take in what workers have found."""
        by_pipe = {worker.pipe: worker for worker in self._pool if worker.job is not None}
        for ready in connection.wait(list(by_pipe), PATIENCE):
            assert isinstance(ready, Connection)
            with self._unless_killed(worker := by_pipe[ready]):
                if (answer := worker.take()) is not None:
                    self._results.update([answer])
                    worker.job = None

    @contextlib.contextmanager
    def _unless_killed(self, worker: "_Worker") -> Iterator[None]:
        """What goes wrong with a message is the failure of its job, whoever waits for that.

        A worker in the middle of a message is no more use.
        """
        try:
            yield
        except BaseException as error:
            failure = error
            if isinstance(error, EOFError | OSError) or not isinstance(error, Exception):
                failure = MTError(
                    "a worker process was killed "
                    "(was memory short? use fewer --workers, or a smaller --batch-size)"
                )
                failure.__cause__ = error
            if worker.job:
                self._results[worker.job.number] = _Failure(failure)
            self._remove(worker)
            if not isinstance(error, Exception):
                raise

    def _forget(self, numbers: set[int], work: SharedWork[Any, Any] | None) -> None:
        """Drop these jobs, done or not, and a work that nobody uses again."""
        with self._lock:
            waiting = [job for job in self._waiting if job.number not in numbers]
            self._waiting.clear()
            self._waiting.extend(waiting)
            for number in numbers:
                self._results.pop(number, None)
            for worker in list(self._pool):
                if worker.job is not None and worker.job.number in numbers:
                    self._remove(worker)  # nobody waits for what it does
                elif work is not None:
                    worker.forget(work)

    def _remove(self, worker: "_Worker") -> None:
        if worker in self._pool:
            self._pool.remove(worker)
            _end([worker])


class _Worker:
    """A process of the pool, as this process sees it."""

    def __init__(self) -> None:
        release_freed_memory()  # of a model that is now in the memory of the work
        level = logging.getLogger("mt").getEffectiveLevel()
        self.child: Child = worker_template().start(partial(_serve, level))
        self.pipe = self.child.pipe
        self.job: _Job | None = None
        self._known: set[int] = set()  # the numbers of the works that it has

    def give(self, job: _Job) -> None:
        """Send a job, and before it the work if the process does not have it."""
        self.job = job
        if job.work.number not in self._known:
            self._known.add(job.work.number)
            self.pipe.send(("work", job.work.number))
            job.work.send(self.pipe, self.child.pid)
        self.pipe.send(("job", job.number, job.threads, job.work.number, job.item))

    def take(self) -> tuple[int, Any] | None:
        """The number of the job and its result; None after a message for the log."""
        number, result = self.pipe.recv()
        if isinstance(result, logging.LogRecord):
            if (logger := logging.getLogger(result.name)).isEnabledFor(result.levelno):
                logger.handle(result)
            return None
        return number, result

    def forget(self, work: SharedWork[Any, Any]) -> None:
        """Let the process drop a work."""
        if work.number in self._known:
            self._known.remove(work.number)
            with contextlib.suppress(OSError):
                self.pipe.send(("forget", work.number))


def _end(pool: list[_Worker]) -> None:
    """Kill these processes, whatever they do."""
    for worker in pool:
        worker.child.kill()
    for worker in pool:
        worker.child.wait()
    pool.clear()


class _LogSender(logging.handlers.QueueHandler):
    """Sends messages for the log to the process that has set up logging."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send((-1, record))  # type: ignore[attr-defined]


def _serve(log_level: int, pipe: Connection) -> None:
    """The life of a worker: a result, or the error instead, for each job that comes."""
    keep_freed_memory()
    logging.getLogger().addHandler(_LogSender(pipe))  # type: ignore[arg-type]
    logging.getLogger().setLevel(log_level)
    works: dict[int, Any] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):  # nobody waits any more
        while True:
            kind, number, *job = pipe.recv()
            if kind == "work":
                works[number] = _outcome(receive_work, pipe)
            elif kind == "forget":
                del works[number]
            else:
                threads, work_number, item = job
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
                work = works[work_number]
                pipe.send((number, work if isinstance(work, _Failure) else _outcome(work, item)))


def _outcome(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return _Failure(error)
