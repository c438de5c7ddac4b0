"""What a run tells: messages on stderr and in train.log, numbers in metrics.jsonl (and TensorBoard
where it is installed).
"""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _BarSafeHandler(logging.StreamHandler):
    """Writes above a progress bar rather than through it; stderr on a full disk ends no training."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Goes on without a word where the disk is full."""

    def emit(self, record: logging.LogRecord) -> None:
        assert self.stream is not None
        with contextlib.suppress(OSError):
            self.stream.write(self.format(record) + self.terminator)
            self.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def setup_logging(log_file: Path | None = None, *, is_first: bool = True) -> None:
    """Send the messages of `mt` to stderr and, where given, append them to `log_file`; of several
    ranks only the first speaks.
    """
    logger = logging.getLogger("mt")
    logger.setLevel(logging.INFO if is_first else logging.ERROR)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    console = _BarSafeHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if log_file is not None:
        file_handler = _FileHandler(log_file, encoding="utf-8", errors="backslashreplace")
        file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file_handler)


def say(message: str) -> None:
    """A line on stderr, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{message}\n")


def shows_progress() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def progress(items: Iterable[T], total: int | None, what: str, unit: str = "line") -> Iterable[T]:
    """A progress bar on stderr around `items`; silent where stderr is no terminal."""
    return tqdm(
        items,
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        disable=not shows_progress(),
        leave=False,
    )


@contextlib.contextmanager
def progress_bar(
    count: Callable[[], int | None], what: str, unit: str, is_shown: bool = True
) -> Iterator[Callable[[int], object]]:
    """A progress bar on stderr to be advanced by so many; `count` finds the total, or None where
    that cannot be known.

    Where stderr is no terminal nothing is shown, and nothing counted.
    """
    if not (is_shown and shows_progress()):
        yield lambda done: None
        return
    with tqdm(
        total=count(),
        desc=what,
        unit=unit,
        smoothing=0,
        dynamic_ncols=True,
        leave=False,
        file=sys.stderr,
    ) as bar:
        yield bar.update


def format_seconds(seconds: float) -> str:
    """`3:07`, `1:02:45`: hours only where there are some."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class MetricLogger:
    """Appends one JSON object a line to metrics.jsonl, and mirrors numbers to TensorBoard where it
    is installed.

    A resumed run drops the lines of updates that it is about to do again, so that each update
    stands once, and the report that an earlier start gave of a part of its window (`partial`). What
    a full disk refuses is kept until there is room.
    """

    def __init__(self, path: Path, tensorboard: Path, resume_step: int) -> None:
        self._path = path
        kept = list(_lines_until(self._path, resume_step)) if self._path.exists() else []
        rewritten = self._path.with_name(
            f".{self._path.name}.tmp"
        )  # a kill in between must not lose the history
        with rewritten.open("wb") as file:
            file.write("".join(kept).encode())
            file.flush()
            os.fsync(file.fileno())
        rewritten.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._pending, self._warned = b"", False
        self._board = _tensorboard(tensorboard, resume_step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Record the numbers of one event (`train`, `valid`) of one update."""
        self._pending += (
            json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False) + "\n"
        ).encode()
        self._flush()
        self._mirror(kind, step, values)

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self._file.write(self._pending) :]
        except OSError as error:
            if not self._warned:
                logger.warning("%s: %s; its lines are kept until there is room", self._path, error)
            self._warned = True

    def _mirror(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        try:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            logger.warning("TensorBoard gets no more numbers from this process: %s", error)
            self._board = None

    def close(self) -> None:
        """Write what is pending."""
        self._flush()
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def _lines_until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(
            ValueError, KeyError, TypeError
        ):  # a line cut short by a kill is dropped
            row = json.loads(line)
            if row["step"] <= step and not row.get("partial"):
                yield line.decode() + "\n"


def _tensorboard(folder: Path, resume_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    usual = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread dies where the disk is full, which the next call in `_mirror` is
        told.
        """
        if not (
            isinstance(args.exc_value, OSError)
            and type(args.thread).__module__.startswith("tensorboard")
        ):
            usual(args)

    threading.excepthook = hook
    return SummaryWriter(str(folder), purge_step=resume_step + 1)
