"""Files that appear whole or not at all, lines that are bytes up to a newline, fingerprints, and
locks between processes.
"""

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

BLOCK = 1 << 20  # bytes read at a time
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE = 64 << 20  # a file without newlines must not fill the memory
# How a compressed file begins, whatever its name is, and what unpacks it.
UNPACK: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda packed: gzip.GzipFile(fileobj=packed),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
ZSTANDARD = b"\x28\xb5\x2f\xfd"
# What a file system without locks answers.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def open_binary(path: str | Path) -> Iterator[BinaryIO]:
    """A file opened for reading bytes; `-` is standard input. gzip, bzip2 and xz are unpacked,
    whatever the file is called.

    Raises `DataError` for a file that cannot be opened, read or unpacked.
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
                    f"{name}: compressed with Zstandard, which mt does not read; unpack it: unzstd {path}"
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
    """Lines as `wc -l` counts them, without their newline: bytes up to `\\n`, a last line without
    one included.

    Raises `DataError` for an unreadable or damaged file and for a line over 64 MiB.
    """
    with open_binary(path) as handle:
        for number, line in enumerate(iter(lambda: handle.readline(MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{path}:{number}: a line of more than {MAX_LINE >> 20} MiB; is this a text file?"
                )
            yield line[:-1] if line.endswith(b"\n") else line


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
        with naming(path), temporary.open("wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An `OSError` of the block that names no file, as a failed write does not, names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`; when the block ends well its files are forced to the
    disk and it becomes `path`.

    An existing `path` is replaced. When the block raises, nothing remains.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with naming(path):
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
    """Delete a folder: it is gone from its place at once, so that a kill leaves no half of it
    there.
    """
    doomed = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what a killed process left half written anywhere in `folder`, or only what was to be
    called `name`.

    Whoever calls this holds the lock over it.
    """
    for path in list(folder.rglob(f".{name}.*tmp")):
        shutil.rmtree(
            path, ignore_errors=True
        ) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


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


def sha256_text(path: str | Path) -> str:
    """SHA-256 of a file's lines in hexadecimal: it does not change if the file is packed, gets a
    byte-order mark, other line ends, or a newline after its last line. Raises `DataError`.
    """
    digest, last = hashlib.sha256(), b"\n"
    with open_binary(path) as handle:
        block = handle.read(BLOCK).removeprefix(BYTE_ORDER_MARK)
        while block:
            while block.endswith(b"\r") and (more := handle.read(BLOCK)):
                block += more
            block = block.removesuffix(b"\r").replace(b"\r\n", b"\n")
            digest.update(block)
            last, block = block[-1:] or last, handle.read(BLOCK)
    if last != b"\n":
        digest.update(b"\n")
    return digest.hexdigest()


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


def try_lock(handle: BinaryIO) -> bool:
    """Lock an open file for this process until it is closed; False if another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: no locks on this file system (%s); let only one process write here",
            handle.name,
            error.strerror,
        )
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait_for: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on a file while the block runs; the system drops it when the process
    dies.

    Raises `MTError` if another process holds it, or, with `wait_for`, logs what this process waits
    for and waits. On a file system without locks, warns and goes on without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as handle:
        if not try_lock(handle):
            if wait_for is None:
                raise MTError(f"{path.parent}: another process is using this folder")
            logger.info("waiting for another process: it makes %s (its lock is %s)", wait_for, path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
