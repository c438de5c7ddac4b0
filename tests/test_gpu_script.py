"""Rehearse scripts/gpu.sh on a CPU: each part records its results, even if another part fails."""

import gzip
import json
import os
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, sample_lines

sys.path.append(str(ROOT / "scripts/bench"))
import gpu as gpu_bench
from gpu import Part, summary_lines

RATE = "target_tokens_per_second"
TRAINED = {"engine", "preset", "compute", "max_tokens", RATE, "runs", "peak_memory_gib"}
DECODED = {"engine", "preset", "beam", "batch", RATE, "sentences", "peak_mib"}


def make_data(folder: Path) -> None:
    """Write lines of the sample corpus into files that are named like those of Multi30k."""
    folder.mkdir()
    for name, count in (("train", 300), ("val", 20), ("test_2016_flickr", 20)):
        for side in ("de", "en"):
            text = "\n".join(sample_lines("train", side, count)) + "\n"
            (folder / f"{name}.{side}.gz").write_bytes(gzip.compress(text.encode()))


def test_a_rehearsal_on_a_cpu_measures_all_but_the_tests(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/triton-99-py3-none-any.whl", "w") as wheel:
        about = "Metadata-Version: 2.1\nName: triton\nVersion: 99\n"
        wheel.writestr("triton-99.dist-info/METADATA", about)
    own = {"MT_GPU_DEVICE": "cpu", "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    command = ["scripts/gpu.sh", tmp_path / "data", tmp_path / "wheels"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr

    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"summary.txt", "results.jsonl", "environment.json", "log.txt"}
    about = json.loads((tmp_path / "out/environment.json").read_text())
    assert {"gpu", "torch", "python"} <= about.keys()
    assert about["triton"] == "99"  # this is the version of the wheel

    lines = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    problems = [line for line in lines if "problem" in line]
    assert [line["part"] for line in problems] == ["tests"], result.stdout
    by_part = {part: [line for line in lines if line["part"] == part] for part in gpu_bench.PARTS}
    engines = [line["engine"] for line in by_part["train"] + by_part["huggingface"]]
    assert engines == ["mt, compiled", "mt, eager", "mt, deterministic", "Hugging Face, eager"]
    assert all(line.keys() >= TRAINED for line in by_part["train"] + by_part["huggingface"])
    batches = [(line["engine"], line["batch"]) for line in by_part["decode"]]
    assert batches == [("mt-fp32", 2), ("mt-fp32", 4)]
    assert all(line.keys() >= DECODED for line in by_part["decode"])

    summary = (tmp_path / "out/summary.txt").read_text()
    for text in (*engines, "mt-fp32", "tests: skipped: there is no GPU"):
        assert text in summary


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Part:
    """Return a part that has 1.5 seconds left."""
    monkeypatch.setattr(gpu_bench, "LEAST_SECONDS", 1.0)
    place = {"out": tmp_path, "scratch": tmp_path, "data": tmp_path}
    return Part(Namespace(part="train", device="cpu", seconds=1.5, **place))


def ends(pid: int) -> bool:
    """Return whether a process ends within five seconds. A zombie counts as ended."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def recorded(part: Part) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (part.out / "results.jsonl").read_text().splitlines()]


def test_what_fails_and_what_takes_too_long_is_recorded_and_ended(
    part: Part, tmp_path: Path
) -> None:
    assert part.run("well", "-c", "pass")
    assert not part.run("badly", "-c", "raise SystemExit(3)")
    pid = tmp_path / "pid"
    sleeper = f"import os, time; print(os.getpid(), file=open({str(pid)!r}, 'w')); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    part.end = time.monotonic() + 2
    assert not part.run("slowly", "-c", child)
    assert not part.run("late", "-c", "pass")
    assert [(line["what"], line["problem"]) for line in recorded(part)] == [
        ("badly", "exit 3, see log.txt"),
        ("slowly", "stopped after 2 s"),
        ("late", "skipped: no time left"),
    ]
    assert ends(int(pid.read_text()))


def test_a_package_that_is_missing_is_named(part: Part) -> None:
    assert not part.lacks("torch")
    assert part.lacks("no_such_package")
    [line] = recorded(part)
    assert (line["what"], line["problem"]) == ("no_such_package", "skipped: the package is missing")


def test_a_summary_of_nothing_and_of_tests_alone() -> None:
    assert list(summary_lines({}, [])) == ["no environment.json"]
    counts = {"tests": 5.0, "failures": 1.0, "errors": 1.0, "skipped": 2.0, "time": 3.5}
    lines = list(summary_lines({"gpu": "a GPU"}, [{"part": "tests", **counts}]))
    assert lines == ["gpu a GPU", "\ntests: 5 in total, 2 failed, 2 skipped"]
