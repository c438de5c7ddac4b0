"""Where results are written: checked before the work, written into whatever is there, and kept as
far as they are if the work fails.
"""

import contextlib
import gzip
import json
import logging
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import ConfigError, MTError
from mt.files import try_lock

logger = logging.getLogger(__name__)

OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")  # names of files that are open already


class Lines:
    """Takes lines for an output and counts them; at the last flush `finished` lines ended at byte
    `position`.
    """

    def __init__(self, handle: BinaryIO, path: Path | None) -> None:
        self.handle, self.path, self.count = handle, path, 0
        self.finished, self.position = 0, 0

    def write(self, text: str) -> None:
        """Write what belongs to one line of input. Raises `MTError` that names the output."""
        with _named(self.path):
            self.handle.write(text.encode())
        self.count += 1

    def flush(self) -> None:
        """Hand on what is written, for whoever waits for it."""
        with _named(self.path):
            self.handle.flush()
        if self.handle.seekable():
            self.finished, self.position = self.count, self.handle.tell()


@contextlib.contextmanager
def _named(path: Path | None) -> Iterator[None]:
    """A write that fails names its output; that a reader has left is no failure of the write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path | None, error: OSError) -> MTError:
    return MTError(f"{path or 'standard output'}: cannot be written: {error.strerror or error}")


def check_output(path: Path | None) -> None:
    """Raise `ConfigError` if nothing can be written to `path`; None is standard output."""
    if path is None:
        if not hasattr(sys.stdout, "buffer"):
            raise ConfigError("standard output is closed; name a file with --output")
        return
    if not is_replaceable(path):
        target = writable = path
    else:
        target = _target(path)
        writable = target.parent
    if target.is_dir():
        raise ConfigError(f"{path}: a folder; give the name of a file")
    if not target.exists() and not target.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {target.parent}")
    if not os.access(writable, os.W_OK):
        raise ConfigError(f"{path}: cannot be written: no permission for {writable}")


def _target(path: Path) -> Path:
    """What `path` stands for: links are followed."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def is_replaceable(path: Path) -> bool:
    """Whether a new file may take the place of `path`: not of a device, pipe or socket, nor of a
    name for an open file.
    """
    if str(path.absolute()).startswith(OPEN_FILES):
        return False
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)


def tell(message: str) -> None:
    """A line on standard output about what was done elsewhere; without standard output there is
    nobody to be told.
    """
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def write_text(path: Path, text: str) -> None:
    """Write a whole text: a file appears when it is complete, a link keeps pointing at it, a device
    or pipe gets it.
    """
    with open_output(path) as lines:
        lines.write(text)


@contextlib.contextmanager
def open_output(path: Path | None, about: Mapping[str, Any] | None = None) -> Iterator[Lines]:
    """Standard output, or a file that takes its name when all is written; `.gz` packs it. A device
    or pipe is written directly.

    If the block raises after some lines, they stay in `<name>.part`, which a message names, with
    their number and `about` in `<name>.part.json`.
    """
    if path is None:
        lines = Lines(sys.stdout.buffer, None)
        yield lines
        lines.flush()
        return
    if not is_replaceable(path):
        device = path.open("wb")
        try:
            lines = Lines(device, path)
            yield lines
            lines.flush()
        finally:
            with contextlib.suppress(OSError):  # of what could not be written before
                device.close()
        return
    target = _target(path)
    part = target.with_name(f"{target.name}.part")
    kept: Lines | None = None
    try:
        with contextlib.ExitStack() as stack:
            raw: BinaryIO = stack.enter_context(part.open("ab"))
            if not try_lock(raw):
                raise MTError(f"{path}: another process is writing it")
            raw.truncate(0)
            is_packed = target.suffix == ".gz"
            handle = (
                stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb")) if is_packed else raw
            )
            kept = Lines(cast(BinaryIO, handle), path)
            yield kept
            kept.flush()
        part.replace(target)
        _described(part).unlink(missing_ok=True)  # of an earlier try
    except OSError as error:
        _keep(part, kept, about)
        raise _write_error(path, error) from error
    except BaseException:
        _keep(part, kept, about)
        raise


def _described(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _keep(part: Path, lines: Lines | None, about: Mapping[str, Any] | None) -> None:
    """Say where the finished lines are; without any, or if they mean nothing alone, nothing stays.
    A file of another process does.
    """
    if lines is None:
        return
    with contextlib.suppress(OSError):
        if not lines.finished or about is None:
            part.unlink(missing_ok=True)
            return
        if not isinstance(
            lines.handle, gzip.GzipFile
        ):  # whose lines after the last flush cannot be cut off
            os.truncate(part, lines.position)
        described = {"finished_lines": lines.finished, **about}
        _described(part).write_text(
            json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        logger.warning(
            "%s: what is finished, the translations of the first %s lines",
            part,
            f"{lines.finished:,}",
        )
