"""Several processes that share the work, and the memory of its model.

On a CPU a process of one thread to each core translates faster than one process of many threads,
as threads wait for one another after each product. The processes are forked from a template that
has not computed (see `mt.runtime.template`), never from this one.
"""

import contextlib
import itertools
import logging
import logging.handlers
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from mt.errors import ConfigError, MTError
from mt.runtime.device import Compute, keep_freed_memory, release_freed_memory
from mt.runtime.sharing import SharedWork, receive_work
from mt.runtime.template import Child
from mt.runtime.worker_template import worker_template

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Workers:
    """`count` processes that share `threads` threads; if it is 1, this process does the work."""

    count: int = 1
    threads: int = 1

    @classmethod
    def choose(cls, count: int | None, compute: Compute) -> "Workers":
        """`count` processes that share PyTorch's threads; None: one process per thread, on a CPU.

        Raises `ConfigError` for several on a GPU, or on a system other than Linux.
        """
        can_share = compute.device.type == "cpu" and sys.platform == "linux"
        threads = torch.get_num_threads()
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
        if not isinstance(work, SharedWork):
            if self.count == 1 or not items:
                yield from map(work, items)
                return
            work = SharedWork(work)
        count = min(self.count, len(items))
        level = logging.getLogger("mt").getEffectiveLevel()
        release_freed_memory()  # of a model that is now in the memory of `work`
        children: list[Child] = []
        try:
            for _ in range(count):
                serve = partial(_serve, max(1, self.threads // count), level)
                children.append(worker_template().start(serve))
                with _told_of_deaths():
                    work.send(children[-1].pipe, children[-1].pid)
            yield from _in_order([child.pipe for child in children], items)
        finally:  # all is done, or nobody waits for what they do
            for child in children:
                child.kill()
            for child in children:
                child.wait()


def _in_order(pipes: Sequence[Connection], items: Sequence[Any]) -> Iterator[Any]:
    """Hand out `items` one by one to whoever is free, and give the results in order."""
    jobs = iter(enumerate(items))
    finished: dict[int, Any] = {}
    for pipe, job in zip(pipes, jobs, strict=False):
        _send(pipe, job)
    for number in range(len(items)):
        while number not in finished:
            for ready in connection.wait(pipes):
                assert isinstance(ready, Connection)
                if (result := _receive(ready)) is not None:
                    finished.update([result])
                    for job in itertools.islice(jobs, 1):
                        _send(ready, job)
        yield finished.pop(number)


def _send(pipe: Connection, job: tuple[int, Any]) -> None:
    with _told_of_deaths():
        pipe.send(job)


def _receive(pipe: Connection) -> tuple[int, Any] | None:
    """The number of an item and its result; None after a message for the log.

    Raises the worker's error.
    """
    with _told_of_deaths():
        index, result = pipe.recv()
    if isinstance(result, logging.LogRecord):
        if (logger := logging.getLogger(result.name)).isEnabledFor(result.levelno):
            logger.handle(result)
        return None
    if isinstance(result, _Failure):
        raise result.error
    return index, result


@contextlib.contextmanager
def _told_of_deaths() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise MTError(
            "a worker process was killed "
            "(was memory short? use fewer --workers, or a smaller --batch-size)"
        ) from error


@dataclass(frozen=True)
class _Failure:
    """In place of a result."""

    error: Exception


class _LogSender(logging.handlers.QueueHandler):
    """Sends messages for the log to the process that has set up logging."""

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send((-1, record))  # type: ignore[attr-defined]


def _serve(threads: int, log_level: int, pipe: Connection) -> None:
    """The life of a worker: a result, or the error instead, for each item that comes."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    logging.getLogger().addHandler(_LogSender(pipe))  # type: ignore[arg-type]
    logging.getLogger().setLevel(log_level)
    with contextlib.suppress(EOFError, BrokenPipeError):  # nobody waits any more
        work = _outcome(receive_work, pipe)
        while True:
            number, item = pipe.recv()
            pipe.send((number, work if isinstance(work, _Failure) else _outcome(work, item)))


def _outcome(work: Callable[[Any], Any], item: Any) -> Any:
    try:
        return work(item)
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return _Failure(error)
