"""Worker processes that apply a function to items, and share the memory of its model.

On a CPU, one process per core translates faster than one process with many threads, because threads
wait for each other after each matrix product. The processes keep running between calls. They are
forked from a template process that has never computed (see `mt.runtime.template`).
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
from mt.runtime.memory import configure_malloc, release_freed_memory
from mt.runtime.sharing import SharedFunction, receive_function
from mt.runtime.template import Child, ensure_worker_template

T = TypeVar("T")
R = TypeVar("R")
# A thread waits this many seconds for results before other threads may send items to the workers.
RESULT_TIMEOUT = 0.05


@dataclass(frozen=True)
class _Job:
    """An item for a worker, which applies `function` to it with `threads` threads."""

    number: int
    threads: int
    function: SharedFunction[Any, Any]
    item: Any


@dataclass(frozen=True)
class _Failure:
    """An error, which is sent instead of a result."""

    error: BaseException


class Workers:
    """A pool of `count` processes with `threads` threads in total.

    If `count` is 1, this process does the work itself. The processes are started when they are
    first needed. Several threads of this process may use the pool at the same time.
    """

    def __init__(self, count: int = 1, threads: int = 1) -> None:
        self.count, self.threads = count, threads
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._waiting: deque[_Job] = deque()
        self._results: dict[int, Any] = {}  # keyed by job number
        self._pool: list[_Worker] = []
        weakref.finalize(self, _kill_all, self._pool)

    def close(self) -> None:
        """Kill the processes. This also happens when the object is deleted."""
        _kill_all(self._pool)

    @classmethod
    def for_compute(cls, count: int | None, compute: Compute) -> "Workers":
        """Return a pool of `count` processes that share the threads of `compute`.

        If `count` is None, there is one process per thread on a CPU under Linux, and one process
        otherwise. Raises `ConfigError` for several processes on a GPU or another system.
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
            ensure_worker_template()  # which imports PyTorch while this process loads the model
        return cls(count, threads)

    def share(self, function: Callable[[T], R]) -> Callable[[T], R] | SharedFunction[T, R]:
        """Return `function` in a form that makes repeated calls of `map` fast.

        With several processes, `function` and its model are copied to shared memory, and the caller
        may delete the original.
        """
        return function if self.count == 1 else SharedFunction(function)

    def map(
        self, function: Callable[[T], R] | SharedFunction[T, R], items: Sequence[T]
    ) -> Generator[R, None, None]:
        """Yield `function(item)` for each item, in order.

        If there are fewer items than processes, each process uses more threads. With several
        processes, the function, the items and the results must be picklable. Raises the error that
        `function` raises, and `MTError` if a process is killed.
        """
        if not items:
            return
        shared = function if isinstance(function, SharedFunction) else self.share(function)
        if not isinstance(shared, SharedFunction):
            yield from map(shared, items)
            return
        threads = max(1, self.threads // min(self.count, len(items)))
        jobs = [_Job(next(self._numbers), threads, shared, item) for item in items]
        with self._lock:
            self._waiting.extend(jobs)
        try:
            for job in jobs:
                yield self._result(job)
        finally:
            self._forget({job.number for job in jobs}, None if shared is function else shared)

    def _result(self, job: _Job) -> Any:
        """Return the result of `job`, or raise its error.

        While this thread waits, it sends and receives the jobs of all threads.
        """
        while True:
            with self._lock:
                self._send_jobs()
                if job.number not in self._results:
                    self._receive_results()
                if job.number in self._results:
                    result = self._results.pop(job.number)
                    break
        if isinstance(result, _Failure):
            raise result.error
        return result

    def _send_jobs(self) -> None:
        """Send waiting jobs to idle workers. Starts workers if there are fewer than `count`."""
        idle = [worker for worker in self._pool if worker.job is None]
        while self._waiting and (idle or len(self._pool) < self.count):
            if not idle:
                idle.append(_Worker())
                self._pool.append(idle[0])
            with self._failing_its_job(worker := idle.pop(0)):
                worker.send(self._waiting.popleft())

    def _receive_results(self) -> None:
        """Receive the results that workers have sent, or wait a moment if there are none."""
        by_pipe = {worker.pipe: worker for worker in self._pool if worker.job is not None}
        for ready in connection.wait(list(by_pipe), RESULT_TIMEOUT):
            assert isinstance(ready, Connection)
            with self._failing_its_job(worker := by_pipe[ready]):
                if (result := worker.receive()) is not None:
                    self._results.update([result])
                    worker.job = None

    @contextlib.contextmanager
    def _failing_its_job(self, worker: "_Worker") -> Iterator[None]:
        """If communicating with `worker` fails in the block, make the error the result of its job.

        The job may belong to another thread, which will then raise the error. The worker is killed,
        because it may be in the middle of a message.
        """
        try:
            yield
        except BaseException as error:
            failure = error
            if isinstance(error, EOFError | OSError) or not isinstance(error, Exception):
                failure = MTError(
                    "a worker process was killed "
                    "(if memory ran out, use fewer --workers or a smaller --batch-size)"
                )
                failure.__cause__ = error
            if worker.job:
                self._results[worker.job.number] = _Failure(failure)
            self._kill(worker)
            if not isinstance(error, Exception):
                raise

    def _forget(self, numbers: set[int], function: SharedFunction[Any, Any] | None) -> None:
        """Forget the jobs with the given numbers, and make the workers delete `function`.

        Workers that are still working on one of the jobs are killed.
        """
        with self._lock:
            self._waiting = deque(job for job in self._waiting if job.number not in numbers)
            for number in numbers:
                self._results.pop(number, None)
            for worker in list(self._pool):
                if worker.job is not None and worker.job.number in numbers:
                    self._kill(worker)
                elif function is not None:
                    worker.forget(function)

    def _kill(self, worker: "_Worker") -> None:
        if worker in self._pool:
            self._pool.remove(worker)
            _kill_all([worker])


class _Worker:
    """A pool process and the job it is working on."""

    def __init__(self) -> None:
        release_freed_memory()  # for example, of a model that was copied to shared memory
        level = logging.getLogger("mt").getEffectiveLevel()
        self.child: Child = ensure_worker_template().start(partial(_serve, level))
        self.pipe = self.child.pipe
        self.job: _Job | None = None
        self._known: set[int] = set()  # the numbers of the functions that the process has received

    def send(self, job: _Job) -> None:
        """Send a job to the process. If necessary, sends the function of the job first."""
        self.job = job
        function = job.function
        if function.number not in self._known:
            self._known.add(function.number)
            self.pipe.send(("function", function.number))
            function.send(self.pipe, self.child.pid)
        self.pipe.send(("job", job.number, job.threads, function.number, job.item))

    def receive(self) -> tuple[int, Any] | None:
        """Receive a message. Returns (job number, result), or None if it was a log message."""
        number, result = self.pipe.recv()
        if isinstance(result, logging.LogRecord):
            if (logger := logging.getLogger(result.name)).isEnabledFor(result.levelno):
                logger.handle(result)
            return None
        return number, result

    def forget(self, function: SharedFunction[Any, Any]) -> None:
        """Make the process delete a function."""
        if function.number in self._known:
            self._known.remove(function.number)
            with contextlib.suppress(OSError):
                self.pipe.send(("forget", function.number))


def _kill_all(pool: list[_Worker]) -> None:
    """Kill the processes in `pool`, wait until they have ended, and empty the list."""
    for worker in pool:
        worker.child.kill()
    for worker in pool:
        worker.child.wait()
    pool.clear()


class _LogSender(logging.handlers.QueueHandler):
    """Sends a worker's log messages to the main process, which has set up logging."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send((-1, record))  # type: ignore[attr-defined]


def _serve(log_level: int, pipe: Connection) -> None:
    """Run a worker process: receive functions and jobs, and send back results or failures."""
    configure_malloc()
    logging.getLogger().addHandler(_LogSender(pipe))  # type: ignore[arg-type]
    logging.getLogger().setLevel(log_level)
    functions: dict[int, Any] = {}
    with contextlib.suppress(EOFError, BrokenPipeError):  # the main process has closed the pipe
        while True:
            kind, number, *job = pipe.recv()
            if kind == "function":
                functions[number] = _result_or_failure(receive_function, pipe)
            elif kind == "forget":
                del functions[number]
            else:
                threads, function_number, item = job
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
                result = function = functions[function_number]
                if not isinstance(function, _Failure):
                    result = _result_or_failure(function, item)
                pipe.send((number, result))


def _result_or_failure(function: Callable[[Any], Any], item: Any) -> Any:
    try:
        return function(item)
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return _Failure(error)
