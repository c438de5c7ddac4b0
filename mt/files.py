"""Atomic file writes, reading of text files line by line, fingerprints, and lock files."""

import bz2
import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import logging
import lzma
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError, MTError

logger = logging.getLogger(__name__)

BLOCK = 1 << 20  # number of bytes to read at a time
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE = 64 << 20  # in bytes; a file without newlines must not fill the memory
# Maps the first bytes of a compressed file to the function that opens the file.
UNPACK: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
ZSTANDARD = b"\x28\xb5\x2f\xfd"
# The errors of `flock` on a file system that does not support locks.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def open_binary(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; `-` means standard input.

    Files in gzip, bzip2 or xz format are decompressed, whatever their name is. Raises
    `DataError`, also inside the block, if the file cannot be opened, read or decompressed.
    """
    name = "standard input" if str(path) == "-" else path
    try:
        with contextlib.ExitStack() as stack:
            if str(path) == "-":
                if sys.stdin is None:
                    raise DataError("standard input is closed; give a file")
                handle = cast(BinaryIO, sys.stdin.buffer)
            else:
                handle = stack.enter_context(Path(path).open("rb"))
            beginning = handle.peek(6)  # type: ignore[attr-defined]
            if beginning.startswith(ZSTANDARD):
                raise DataError(
                    f"{name} is compressed with Zstandard, which mt cannot read; run: unzstd {path}"
                )
            for magic, unpack in UNPACK.items():
                if beginning.startswith(magic):
                    handle = stack.enter_context(unpack(handle))
            yield handle
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def read_lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a file as bytes, without their newline.

    Only `\\n` ends a line. A last line without a newline counts as a line. Raises `DataError` if
    the file is unreadable or damaged, or if a line is longer than 64 MiB.
    """
    with open_binary(path) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{path}:{number}: this line is longer than {MAX_LINE >> 20} MiB; is it text?"
                )
            yield line[:-1] if line.endswith(b"\n") else line


def flush_to_disk(path: Path) -> None:
    """Flush a file or folder to the disk with `fsync`.

    A newly created or renamed file survives a power failure only if its folder is also flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file in such a way that `path` has either the old or the new content at any time.

    The data is written to a temporary file, flushed to the disk, and renamed to `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _name_in_errors(path), temporary.open("wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def _name_in_errors(path: Path) -> Iterator[None]:
    """If the block raises an `OSError` without a file name, add `path` to it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` when the block ends without an error.

    Its files are flushed to the disk first. If the block raises an error, the temporary folder is
    deleted, and `path` does not change.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _name_in_errors(path):
            yield temporary
        for entry in sorted(temporary.rglob("*"), reverse=True):
            flush_to_disk(entry)
        flush_to_disk(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder in such a way that `path` never has only a part of it, even after a kill.

    The folder is first renamed to a temporary name and then deleted.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    path.rename(temporary)
    shutil.rmtree(temporary)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete the temporary files and folders that a killed process left anywhere in `folder`.

    If `name` is given, only the leftovers of that file or folder are deleted. The caller must hold
    the lock of `folder`, because the temporary files of running processes are deleted, too.
    """
    for path in list(folder.rglob(f".{name}.*tmp")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def replace_link(link: Path, target: str) -> None:
    """Create the symbolic link `link` to `target`. An existing link is replaced atomically."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(path: str | Path) -> str:
    """Return the SHA-256 of a file's text, in hexadecimal.

    It does not depend on whether the file is compressed, has a byte-order mark, uses `\\r\\n` or
    `\\n`, or ends with a newline. Raises `DataError` like `open_binary`.
    """
    digest, last = hashlib.sha256(), b"\n"
    with open_binary(path) as handle:
        block = handle.read(BLOCK).removeprefix(BYTE_ORDER_MARK)
        while block:
            # The `\n` of a `\r\n` may be in the next block.
            while block.endswith(b"\r") and (more := handle.read(BLOCK)):
                block += more
            block = block.removesuffix(b"\r").replace(b"\r\n", b"\n")
            digest.update(block)
            last, block = block[-1:] or last, handle.read(BLOCK)
    if last != b"\n":
        digest.update(b"\n")
    return digest.hexdigest()


def fingerprint(*parts: Any) -> str:
    """Hash JSON values to the first 16 hexadecimal digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_lines(lines: Iterable[bytes]) -> str:
    """Like `fingerprint`, for a text that is given as lines without newlines."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def try_lock(handle: BinaryIO) -> bool:
    """Lock an open file until it is closed. Returns False if another process has locked it.

    On a file system without locks, logs a warning and returns True.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        message = (
            "%s: this file system has no locks (%s); make sure that only one process writes here"
        )
        logger.warning(message, handle.name, error.strerror)
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait_for: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` while the block runs.

    If another process has the lock, raises `MTError`. But if `wait_for` is given (what the other
    process is making), waits for the lock. The system releases the lock when the process
    dies. On a file system without locks, logs a warning and runs the block without a lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        if not try_lock(handle):
            if wait_for is None:
                raise MTError(f"{path.parent}: another process is using this folder")
            logger.info("waiting for another process to finish %s (lock: %s)", wait_for, path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
