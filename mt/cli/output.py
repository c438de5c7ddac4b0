"""Write results to standard output, files, links, pipes or devices.

Before they start, commands check that the output can be written. If a command fails, the lines that
it has finished are kept.
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

# Paths that start with one of these are files that are already open.
OPEN_FILES = ("/dev/fd/", "/dev/std", "/proc/")


class Lines:
    """Writes lines to an output and counts them.

    `finished` is the number of lines that were written before the last flush, and `position` is
    their size in bytes.
    """

    def __init__(self, handle: BinaryIO, path: Path | None) -> None:
        self.handle, self.path, self.count = handle, path, 0
        self.finished, self.position = 0, 0

    def write(self, text: str) -> None:
        """Write the output for one line of input. Raises `MTError` if that fails."""
        with _naming_output(self.path):
            self.handle.write(text.encode())
        self.count += 1

    def flush(self) -> None:
        """Flush the output, so that the reader of a pipe gets the lines written so far."""
        with _naming_output(self.path):
            self.handle.flush()
        if self.handle.seekable():
            self.finished, self.position = self.count, self.handle.tell()


@contextlib.contextmanager
def _naming_output(path: Path | None) -> Iterator[None]:
    """Turn any `OSError` except `BrokenPipeError` into an `MTError` that names the output."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _write_error(path, error) from error


def _write_error(path: Path | None, error: OSError) -> MTError:
    return MTError(f"{path or 'standard output'}: cannot be written: {error.strerror or error}")


def check_output(path: Path | None) -> None:
    """Raise `ConfigError` if `path`, or standard output if None, cannot be written."""
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
        raise ConfigError(f"{path} is a folder; give the name of a file")
    if not target.exists() and not target.parent.is_dir():
        raise ConfigError(f"{path}: the folder {target.parent} does not exist")
    if not os.access(writable, os.W_OK):
        raise ConfigError(
            f"{path} cannot be written, because you have no write permission for {writable}"
        )


def _target(path: Path) -> Path:
    """Return the file that `path` points to, following all links."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def is_replaceable(path: Path) -> bool:
    """Whether `path` may be replaced by a new file.

    This is not allowed for devices, pipes, sockets and files that are already open.
    """
    if str(path.absolute()).startswith(OPEN_FILES):
        return False
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)


def print_result(message: str) -> None:
    """Print a message about a result, such as its file, unless stdout is closed."""
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.write(f"{message}\n")
        sys.stdout.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text to a file, link, device or pipe.

    A file is replaced atomically, after all of the text has been written.
    """
    with open_output(path) as lines:
        lines.write(text)


@contextlib.contextmanager
def open_output(path: Path | None, about: Mapping[str, Any] | None = None) -> Iterator[Lines]:
    """Open a file, or standard output if `path` is None, for writing lines.

    A file is written as `<name>.part` and renamed at the end. It is compressed if its name ends in
    `.gz`. Devices and pipes are written directly.

    If the block raises an error, the finished lines are kept in `<name>.part`, and their number is
    written to `<name>.part.json` together with `about`. Without `about`, nothing is kept.
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
            # Closing the file tries to write the rest again, which fails again.
            with contextlib.suppress(OSError):
                device.close()
        return
    target = _target(path)
    part = target.with_name(f"{target.name}.part")
    lines_in_part: Lines | None = None
    try:
        with contextlib.ExitStack() as stack:
            raw: BinaryIO = stack.enter_context(part.open("ab"))
            if not try_lock(raw):
                raise MTError(f"{path}: another process is writing to this file")
            raw.truncate(0)
            handle = (
                stack.enter_context(gzip.GzipFile(fileobj=raw, mode="wb"))
                if target.suffix == ".gz"
                else raw
            )
            lines_in_part = Lines(cast(BinaryIO, handle), path)
            yield lines_in_part
            lines_in_part.flush()
        part.replace(target)
        _description_path(part).unlink(
            missing_ok=True
        )  # an earlier command that failed may have left it
    except OSError as error:
        _keep_finished(part, lines_in_part, about)
        raise _write_error(path, error) from error
    except BaseException:
        _keep_finished(part, lines_in_part, about)
        raise


def _description_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _keep_finished(part: Path, lines: Lines | None, about: Mapping[str, Any] | None) -> None:
    """Keep the finished lines of a failed command, and log where they are.

    If no line is finished, or if `about` is None, delete the partial file.
    """
    if lines is None:  # the partial file belongs to another process
        return
    with contextlib.suppress(OSError):
        if not lines.finished or about is None:
            part.unlink(missing_ok=True)
            return
        # A compressed file cannot be cut after a given line, so it may also have unfinished lines.
        if not isinstance(lines.handle, gzip.GzipFile):
            os.truncate(part, lines.position)
        description = {"finished_lines": lines.finished, **about}
        _description_path(part).write_text(
            json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        logger.warning(
            "%s contains the finished translations of the first %s lines",
            part,
            f"{lines.finished:,}",
        )
