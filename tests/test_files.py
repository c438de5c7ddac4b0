"""Tests of `mt.files`: lines as `wc -l` counts them, atomic writes, fingerprints, and locks."""

import errno
import fcntl
import gzip
import hashlib
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt import files
from mt.cli.output import write_text
from mt.errors import DataError, MTError
from mt.files import (
    atomic_dir,
    atomic_write,
    fingerprint,
    fingerprint_lines,
    locked,
    read_lines,
    remove_folder,
    remove_leftovers,
    replace_link,
    sha256_file,
    sha256_text,
)

# Lines

TEXTS = {
    "two lines": b"a\nb\n",
    "no final newline": b"a\nb",
    "empty": b"",
    "one empty line": b"\n",
    "empty lines at the end": b"a\n\n\n",
    "carriage returns": b"a\rb\r\nc\r",
    "vertical tab and form feed": b"a\vb\fc\n",
    "file separators": b"a\x1cb\x1dc\x1ed\n",
    "U+0085": "a\u0085b\n".encode(),
    "U+2028 and U+2029": "a\u2028b\u2029c\nd".encode(),
    "NUL": b"a\0b\n\0",
    "not UTF-8": b"\xff\xfe\n\x80",
}


def wc(path: Path) -> int:
    return int(
        subprocess.run(
            ["wc", "-l", path], capture_output=True, check=True, text=True
        ).stdout.split()[0]
    )


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("suffix", [".txt", ".gz"])
def test_lines_are_those_that_wc_counts(tmp_path: Path, text: bytes, suffix: str) -> None:
    plain, path = tmp_path / "plain", tmp_path / f"text{suffix}"
    plain.write_bytes(text)
    path.write_bytes(gzip.compress(text) if suffix == ".gz" else text)
    lines = list(read_lines(path))
    unfinished = bool(text) and not text.endswith(b"\n")
    assert len(lines) == wc(plain) + unfinished
    assert b"\n".join(lines) + (b"" if unfinished or not text else b"\n") == text


@given(
    st.lists(
        st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"").lstrip(b"\x1f\x28B\xfd"))
    )
)
def test_lines_joined_by_newlines_read_back(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    assert list(read_lines(path)) == lines


def test_a_line_longer_than_the_buffer_reads_back(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 300_000 + b"\ny")
    assert [len(line) for line in read_lines(tmp_path / "long")] == [300_000, 1]


def test_an_endless_line_is_refused_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE", 10)
    path = tmp_path / "text"
    path.write_bytes(b"x" * 9 + b"\n" + b"y" * 11)
    lines = read_lines(path)
    assert next(lines) == b"x" * 9
    with pytest.raises(DataError, match=rf"{path}:2: .*longer than"):
        next(lines)


def random_bytes(size: int) -> bytes:
    return b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(size // 32))


def damaged() -> Iterator[tuple[str, bytes]]:
    whole = gzip.compress(random_bytes(4096).replace(b"\n", b""))
    deflated = gzip.compress(b"the same line\n" * 1000)
    yield "cut in the middle", whole[: len(whole) // 2]
    yield "cut in the checksum", whole[:-3]
    yield "wrong checksum", whole[:-8] + bytes(4) + whole[-4:]
    yield "broken deflate stream", deflated[:10] + b"\xff" * 20 + deflated[30:]


DAMAGED = dict(damaged())


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_gz_names_the_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=str(path)):
        list(read_lines(path))


@pytest.mark.parametrize("name", ["missing.txt", "missing.gz", "folder", "folder.gz"])
def test_a_file_that_cannot_be_opened_names_itself(tmp_path: Path, name: str) -> None:
    if name.startswith("folder"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=str(tmp_path / name)):
        list(read_lines(tmp_path / name))


@pytest.mark.parametrize("name", ["text", "text.gz"])
def test_reading_leaves_no_file_open(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"a\nb\n") if name.endswith("gz") else b"a\nb\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        half = read_lines(path)
        next(half)
        half.close()
        assert list(read_lines(path)) == [b"a", b"b"]
    assert [str(warning.message) for warning in caught] == []


# Atomic writes


def entries(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("data", ["Größe\n", b"\0\xff"])
def test_atomic_write_replaces_a_file_and_leaves_no_temporary_file(
    tmp_path: Path, data: str | bytes
) -> None:
    (tmp_path / "file").write_bytes(b"old, and longer than the new")
    atomic_write(tmp_path / "file", data)
    assert entries(tmp_path) == {"file": data.encode() if isinstance(data, str) else data}


def test_atomic_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError("no space left")

    atomic_write(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        atomic_write(tmp_path / "file", "new")
    assert entries(tmp_path) == {"file": b"old"}


def test_atomic_dir_appears_only_when_its_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with atomic_dir(path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "file").write_text("new")
        assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]
    assert entries(path) == {"sub/file": b"new"}


def test_atomic_dir_replaces_an_existing_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_dir(tmp_path / "folder") as temporary:
            (temporary / name).write_text(name)
    assert entries(tmp_path) == {"folder/new": b"new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_dir_leaves_nothing_when_its_block_raises(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    for name in ("there", "fresh"):
        # The block must write a file before it raises, so it has two statements.
        with pytest.raises(error), atomic_dir(tmp_path / name) as temporary:  # noqa: PT012
            (temporary / "file").write_text("new")
            raise error
    assert entries(tmp_path) == {"there/old": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_atomic_dir_does_not_contain_files_of_an_earlier_attempt_that_was_killed(
    tmp_path: Path,
) -> None:
    leftover = tmp_path / f".folder.{os.getpid()}.tmp"
    leftover.mkdir()
    (leftover / "stale").write_text("stale")
    with atomic_dir(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("new")
    assert entries(tmp_path) == {"folder/file": b"new"}


def test_a_link_is_created_and_then_replaced(tmp_path: Path) -> None:
    for target in ("one", "two"):
        (tmp_path / target).write_text(target)
        replace_link(tmp_path / "link", target)
        assert (tmp_path / "link").read_text() == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "one", "two"]


# Fingerprints


def test_sha256_file_equals_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(random_bytes(3 << 15))
    assert (
        sha256_file(path)
        == subprocess.run(
            ["sha256sum", path], capture_output=True, check=True, text=True
        ).stdout.split()[0]
    )


def test_only_equal_values_have_equal_fingerprints() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    values = [(), (1,), ("1",), (None,), ([1],), (1, 2), ([1, 2],), ({"a": 1},), ("ä",)]
    assert len({fingerprint(*value) for value in values}) == len(values)


def test_the_fingerprint_of_lines_depends_on_order_and_line_ends() -> None:
    texts = [[], [b""], [b"ab"], [b"a", b"b"], [b"b", b"a"], [b"a", b"b", b""]]
    assert len({fingerprint_lines(text) for text in texts}) == len(texts)
    assert fingerprint_lines(iter([b"a", b"b"])) == fingerprint_lines([b"a", b"b"])


# Locks

HOLDER = """
import sys, time
from pathlib import Path
from mt.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / "lock")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_and_the_death_of_the_first_frees_the_lock(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    lock = tmp_path / "run" / "lock"
    with pytest.raises(MTError, match=f"{tmp_path / 'run'}: another process"), locked(lock):
        pytest.fail("two processes hold the lock")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(lock):
        pass


def test_waiting_ends_when_the_holder_dies(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    lock = tmp_path / "run" / "lock"
    program = HOLDER.replace("sys.argv[1])", "sys.argv[1]), wait_for='it'").replace(
        "time.sleep(60)", ""
    )
    waiter = subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(timeout=0.5)
    holder.kill()
    assert waiter.communicate(timeout=20)[0] == "held\n"
    assert waiter.returncode == 0


def test_a_lock_is_free_after_its_block_even_when_that_raised(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with locked(tmp_path / "lock"):
        pass


def test_leftovers_are_removed_wherever_they_are_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        ".a.1.tmp/b.txt",
        "deep/er/.c.2.tmp",
        "deep/.d.3.tmp/.e.4.tmp/f.txt",
        "deep/kept.tmp",
        ".hidden",
        "deep/er/kept.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {
        "deep",
        "er",
        "kept.tmp",
        ".hidden",
        "kept.txt",
    }


def test_a_folder_is_removed_even_if_an_earlier_attempt_was_killed(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (tmp_path / f".folder.{os.getpid()}.tmp").mkdir()
    (tmp_path / f".folder.{os.getpid()}.tmp/old.txt").write_text("x")
    folder.mkdir()
    (folder / "new.txt").write_text("x")
    remove_folder(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("block", [4, 5, 6, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [b"a\nb\n", b"a\r\nb\r\n", b"a\nb", b"\xef\xbb\xbfa\nb\r", b"\xef\xbb\xbfa\r\nb"],
)
def test_sha256_text_depends_only_on_the_lines(
    tmp_path: Path, text: bytes, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", block)
    (tmp_path / "text").write_bytes(text)
    assert sha256_text(tmp_path / "text") == hashlib.sha256(b"a\nb\n").hexdigest()
    (tmp_path / "text").write_bytes(b"a\rb\n")
    assert sha256_text(tmp_path / "text") == hashlib.sha256(b"a\rb\n").hexdigest()


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuses)
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    with locked(tmp_path / "run" / "lock"):
        pass
    assert "this file system has no locks (Function not implemented)" in caplog.text


@pytest.mark.parametrize(
    "write",
    [
        lambda path: atomic_write(path, b"x" * 10_000),
        lambda path: write_text(path, "x" * 10_000),
    ],
    ids=["atomic_write", "write_text"],
)
def test_the_error_of_a_failed_write_names_the_file(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises((OSError, MTError), match=re.escape(str(tmp_path / "result"))):
            write(tmp_path / "result")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
