"""Writes results to files, links, pipes, devices or standard output.

Outputs are checked before the work starts. If the work fails, finished lines are kept.
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

OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")  # paths of files that are already open


class Lines:
    """Writes lines to an output and counts them.

    At the last flush, `finished` lines had been written, up to byte `position`.

    """

    def __init__(self, handle: BinaryIO, path: Path | None) -> None:
        self.handle, self.path, self.count = handle, path, 0
        self.finished, self.position = 0, 0

    def write(self, text: str) -> None:
        """Write the output for one line of input. Raises `MTError` if that fails."""
        with _named(self.path):
            self.handle.write(text.encode())
        self.count += 1

    def flush(self) -> None:
        """Flush, so that a reader of a pipe gets the lines so far."""
        with _named(self.path):
            self.handle.flush()
        if self.handle.seekable():
            self.finished, self.position = self.count, self.handle.tell()


@contextlib.contextmanager
def _named(path: Path | None) -> Iterator[None]:
    """Turn a failed write into an error that names the output, except for a closed pipe."""
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
    """Return the file that `path` refers to, following links."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def is_replaceable(path: Path) -> bool:
    """Whether a new file may replace `path`.

    Devices, pipes, sockets and names of open files must not be replaced.
    """
    if str(path.absolute()).startswith(OPEN_FILES):
        return False
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)


def tell(message: str) -> None:
    """Print a line about a result that is elsewhere; do nothing if stdout is closed."""
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text to a file, through a link, or to a device or pipe.

    A file appears only when it is complete.
    """
    with open_output(path) as lines:
        lines.write(text)


@contextlib.contextmanager
def open_output(path: Path | None, about: Mapping[str, Any] | None = None) -> Iterator[Lines]:
    """Open standard output (`path` None) or a file for writing text.

    The file is written as `<name>.part` and renamed at the end. A name that ends in `.gz` is
    compressed. Devices and pipes are written directly. If the block raises after some lines, they
    stay in `<name>.part`, and their number and `about` in `<name>.part.json`; a message says so.
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
            with contextlib.suppress(OSError):  # the number of lines of an earlier, failed attempt
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
        _described(part).unlink(missing_ok=True)  # of an earlier attempt
    except OSError as error:
        _keep(part, kept, about)
        raise _write_error(path, error) from error
    except BaseException:
        _keep(part, kept, about)
        raise


def _described(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _keep(part: Path, lines: Lines | None, about: Mapping[str, Any] | None) -> None:
    """Keep the finished lines and print where they are.

    Without any, or if they are useless on their own, delete the partial file, unless it belongs
    to another process.

    """
    if lines is None:
        return
    with contextlib.suppress(OSError):
        if not lines.finished or about is None:
            part.unlink(missing_ok=True)
            return
        if not isinstance(
            lines.handle, gzip.GzipFile
        ):  # lines after the last flush cannot be removed from these
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
