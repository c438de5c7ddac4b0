"""Logging: messages, progress bars, and the numbers for metrics.jsonl and TensorBoard."""

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
    """Write messages to stderr above the progress bar, and ignore write errors.

    If stderr goes to a file on a full disk, training continues.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Append messages to a file and ignore write errors, such as a full disk."""

    def emit(self, record: logging.LogRecord) -> None:
        assert self.stream is not None
        with contextlib.suppress(OSError):
            self.stream.write(self.format(record) + self.terminator)
            self.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def setup_logging(log_file: Path | None = None, *, is_rank0: bool = True) -> None:
    """Write the log messages of `mt` to stderr and, if given, append them to `log_file`.

    Replaces the handlers of an earlier call. Ranks other than rank 0 log only errors.
    """
    logger = logging.getLogger("mt")
    logger.setLevel(logging.INFO if is_rank0 else logging.ERROR)
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


def print_to_stderr(message: str) -> None:
    """Print a line to stderr, unless stderr is closed or cannot be written."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{message}\n")


def shows_progress() -> bool:
    """Whether progress bars are shown, which means that stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def progress(items: Iterable[T], label: str) -> Iterable[T]:
    """Yield `items`, which are sentence pairs, while showing a progress bar on stderr.

    Nothing is shown if stderr is not a terminal.
    """
    return tqdm(
        items,
        desc=label,
        unit="pair",
        unit_scale=True,
        disable=not shows_progress(),
        leave=False,
    )


@contextlib.contextmanager
def progress_bar(
    count: Callable[[], int | None], label: str, unit: str, is_shown: bool = True
) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on stderr while the block runs.

    Yields a function that advances the bar by a number of units. `count` is called if the bar is
    shown, and returns the total, or None if it is unknown. Nothing is shown if `is_shown` is False
    or stderr is not a terminal.
    """
    if not (is_shown and shows_progress()):
        yield lambda units: None
        return
    with tqdm(
        total=count(),
        desc=label,
        unit=unit,
        smoothing=0,
        dynamic_ncols=True,
        leave=False,
    ) as bar:
        yield bar.update


def format_seconds(seconds: float) -> str:
    """Format a duration as minutes and seconds (`3:07`) or with hours (`1:02:45`)."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class MetricLogger:
    """Append numbers to metrics.jsonl, one JSON object per line, and send them to TensorBoard.

    TensorBoard is used only if it is installed. When a run resumes from a checkpoint, the lines of
    later updates are deleted, because the run repeats these updates. Lines marked `partial`, which
    cover less than a full log interval, are also deleted. If the disk is full, lines are kept in
    memory and written later.
    """

    def __init__(self, path: Path, tensorboard: Path, resume_step: int) -> None:
        """Open the file for a run that continues after update `resume_step` (0 for a new run)."""
        self._path = path
        kept = _lines_until(path, resume_step) if path.exists() else []
        # The old file is only replaced at the end, in case the process is killed here.
        rewritten = path.with_name(f".{path.name}.tmp")
        with rewritten.open("wb") as file:
            file.write("".join(kept).encode())
            file.flush()
            os.fsync(file.fileno())
        rewritten.replace(path)
        self._file = path.open("ab", buffering=0)
        self._pending, self._warned = b"", False
        self._board = _open_tensorboard(tensorboard, resume_step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Record the values of an event. `kind` is, for example, `train` or `valid`."""
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
                logger.warning("%s: %s; lines are kept in memory for now", self._path, error)
            self._warned = True

    def _mirror(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None:
            return
        try:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        except OSError as error:
            logger.warning("no more numbers are sent to TensorBoard: %s", error)
            self._board = None

    def close(self) -> None:
        """Write the lines that are still in memory, and close the files."""
        self._flush()
        self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()


def _lines_until(path: Path, step: int) -> Iterator[str]:
    """Yield the lines of metrics.jsonl up to update `step`, except `partial` ones."""
    for line in path.read_bytes().split(b"\n"):
        # A line that is incomplete because an earlier process was killed is skipped.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            if row["step"] <= step and not row.get("partial"):
                yield line.decode() + "\n"


def _open_tensorboard(folder: Path, resume_step: int) -> Any:
    """Return a TensorBoard writer, or None if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    default_hook = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        """Do not print a traceback if the disk is full in TensorBoard's thread.

        The next call in `_mirror` raises the same error.
        """
        is_tensorboard = type(args.thread).__module__.startswith("tensorboard")
        if not (is_tensorboard and isinstance(args.exc_value, OSError)):
            default_hook(args)

    threading.excepthook = hook
    return SummaryWriter(str(folder), purge_step=resume_step + 1)
