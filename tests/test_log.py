"""Tests of `mt.log`: durations, messages, and metrics files with one line per update."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mt.log import MetricLogger, format_seconds, setup_logging
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"), (0.4, "0:00"), (9, "0:09"), (59.4, "0:59"), (59.6, "1:00"), (187, "3:07"),
        (599, "9:59"), (600, "10:00"), (3599, "59:59"), (3599.7, "1:00:00"), (3765, "1:02:45"),
        (86_400, "24:00:00"), (360_000, "100:00:00"),
    ],
)  # fmt: skip
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn TensorBoard off, because importing it takes seconds."""
    monkeypatch.setattr("mt.log._open_tensorboard", lambda folder, step: None)


def record(run_dir: Path, resume_step: int, steps: list[int]) -> None:
    metrics = MetricLogger(run_dir / "metrics.jsonl", run_dir / "tensorboard", resume_step)
    for step in steps:
        metrics.write("train", step, loss=1 / (step + 1), sample="Grüße\u2028\n")
    metrics.close()


def lines(run_dir: Path) -> list[dict[str, object]]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text[:-1].split("\n")]


def test_an_event_is_written_as_one_line(tmp_path: Path) -> None:
    record(tmp_path, 0, [1])
    assert lines(tmp_path) == [{"kind": "train", "step": 1, "loss": 0.5, "sample": "Grüße\u2028\n"}]


@pytest.mark.parametrize("resume_step", [0, 1, 4, 5, 9])
def test_resuming_deletes_later_steps_so_that_each_step_has_one_line(
    tmp_path: Path, resume_step: int
) -> None:
    record(tmp_path, 0, [1, 2, 3, 4, 5])
    record(tmp_path, resume_step, [resume_step + 1])
    kept = [step for step in range(1, 6) if step <= resume_step]
    assert [line["step"] for line in lines(tmp_path)] == [*kept, resume_step + 1]


def test_the_file_of_a_resumed_run_equals_that_of_a_run_without_a_stop(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    record(whole, 0, [1, 2, 3, 4, 5, 6])
    record(resumed, 0, [1, 2, 3, 4])
    record(resumed, 2, [3, 4, 5, 6])
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_line_cut_at_any_byte_is_deleted(tmp_path: Path) -> None:
    record(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    data = path.read_bytes().replace("Grüße\u2028".encode(), b"Greetings")
    first = data.index(b"\n") + 1
    for end in range(first, len(data) - 1):  # a line that lacks only its newline is complete
        path.write_bytes(data[:end])
        record(tmp_path, 2, [3])
        assert [line["step"] for line in lines(tmp_path)] == [1, 3], end


def test_a_line_cut_inside_a_character_is_deleted(tmp_path: Path) -> None:
    record(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rpartition("ß".encode())[0] + "ß".encode()[:1])
    record(tmp_path, 2, [3])
    assert [line["step"] for line in lines(tmp_path)] == [1, 3]


@pytest.fixture
def mt_logger() -> Iterator[logging.Logger]:
    """Yield the logger of `mt`, and restore it after the test."""
    logger = logging.getLogger("mt")
    handlers, propagate, level = list(logger.handlers), logger.propagate, logger.level
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


def test_messages_go_to_stderr_and_append_to_the_file(
    tmp_path: Path, mt_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "train.log"
    for message in ("first Größe", "second"):
        setup_logging(file)
        logging.getLogger("mt.data.prepare").info(message)
    assert capsys.readouterr() == ("", "first Größe\nsecond\n")
    assert [line.split(" INFO ")[1] for line in file.read_text(encoding="utf-8").splitlines()] == [
        "first Größe",
        "second",
    ]


def test_lines_are_written_later_if_the_disk_is_full(tmp_path: Path) -> None:
    """A file-size limit, set in a separate process, has the same effect as a full disk."""
    script = f"""
import resource, signal
from pathlib import Path
from mt.log import MetricLogger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path({str(tmp_path)!r})
metrics = MetricLogger(folder / "metrics.jsonl", folder / "tensorboard", 0)
metrics.write("train", 1, loss=1.0)
resource.setrlimit(resource.RLIMIT_FSIZE, (60, resource.RLIM_INFINITY))
for step in range(2, 5):
    metrics.write("train", step, loss=1.0)
assert Path({str(tmp_path)!r}, "metrics.jsonl").stat().st_size <= 60
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
metrics.write("train", 5, loss=1.0)
metrics.close()
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_messages_still_go_to_stderr_if_the_log_file_is_on_a_full_disk(
    mt_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(Path("/dev/full"))
    for number in range(3):
        logging.getLogger("mt.train").info("message %d", number)
    setup_logging()
    assert capsys.readouterr() == ("", "message 0\nmessage 1\nmessage 2\n")
