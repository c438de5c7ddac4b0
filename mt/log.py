"""What a run tells: messages on stderr and in train.log, numbers in metrics.jsonl (and TensorBoard where it is installed)."""

import contextlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class _BarSafeHandler(logging.StreamHandler):
    """Writes above a progress bar rather than through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(log_file: Path | None = None) -> None:
    """Send the messages of `mt` to stderr and, where given, append them to `log_file`."""
    logger = logging.getLogger("mt")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    console = _BarSafeHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if log_file is not None:
        file_handler = logging.FileHandler(log_file, encoding="utf-8")
        file_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file_handler)


def progress(items: Iterable[T], total: int | None, what: str, unit: str = "line") -> Iterable[T]:
    """A progress bar on stderr around `items`; silent where stderr is no terminal."""
    return tqdm(items, total=total, desc=what, unit=unit, unit_scale=True, disable=not sys.stderr.isatty(), leave=False)


def format_seconds(seconds: float) -> str:
    """`3:07`, `1:02:45`: hours only where there are some."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class MetricLogger:
    """Appends one JSON object a line to metrics.jsonl, and mirrors numbers to TensorBoard where it is installed.

    A resumed run drops the lines of updates that it is about to do again, so that each update stands once.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        path = run_dir / "metrics.jsonl"
        kept = list(_lines_until(path, resume_step)) if path.exists() else []
        rewritten = path.with_name(f".{path.name}.tmp")  # a kill in between must not lose the history
        rewritten.write_text("".join(kept), encoding="utf-8")
        rewritten.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._board = _tensorboard(run_dir / "tensorboard", resume_step)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Record the numbers of one event (`train`, `valid`) of one update."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is pending."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _lines_until(path: Path, step: int) -> Iterator[str]:
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut short by a kill is dropped
            if json.loads(line)["step"] <= step:
                yield line.decode() + "\n"


def _tensorboard(folder: Path, resume_step: int) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=resume_step + 1)
