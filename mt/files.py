"""Files that appear whole or not at all, lines that are bytes up to a newline, fingerprints, and locks between processes."""

import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from mt.errors import DataError, MTError

MAX_LINE = 64 << 20  # a file without newlines must not fill the memory


def open_binary(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes, `.gz` unpacked; `-` is standard input. Raises `DataError` where it cannot be opened."""
    if str(path) == "-":
        return sys.stdin.buffer
    try:
        return cast(BinaryIO, gzip.open(path)) if Path(path).suffix == ".gz" else Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def read_lines(path: str | Path) -> Iterator[bytes]:
    """Lines as `wc -l` counts them, without their newline: bytes up to `\\n`, a last line without one included.

    Raises `DataError` for an unreadable or damaged file and for a line over 64 MiB.
    """
    with open_binary(path) as handle:
        try:
            for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise DataError(f"{path}:{number}: a line of more than {MAX_LINE >> 20} MiB; is this a text file?")
                yield line[:-1] if line.endswith(b"\n") else line
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file beside its place, force it to the disk, and rename it into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well its files are forced to the disk and it becomes `path`.

    An existing `path` is replaced. When the block raises, nothing remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for name in sorted(temporary.rglob("*"), reverse=True):
            if name.is_dir():
                fsync_folder(name)
            else:
                with name.open("rb") as handle:
                    os.fsync(handle.fileno())
        fsync_folder(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Delete a folder: it is gone from its place at once, so that a kill leaves no half of it there."""
    doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written anywhere in `folder`; whoever calls this holds the lock over it."""
    for path in list(folder.rglob(".*.tmp")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link `link` at `target` in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(*parts: Any) -> str:
    """A short name for a value that JSON can hold: equal values, equal names."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_lines(lines: Iterable[bytes]) -> str:
    """A short name for a text: the same lines in the same order give the same name."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
        digest.update(b"\n")
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; the system drops it when the process dies.

    With `wait` false, raises `MTError` at once where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MTError(f"{path.parent}: another process is using this folder") from error
        yield
