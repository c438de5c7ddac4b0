"""A small sample of the survival campaign (scripts/campaign.py), which disturbs real runs."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROMISES = ["ranks", "kills", "resume", "signals", "disk", "races", "hostile", "numbers", "damage"]
CASES = [
    (name, case)
    for name in PROMISES
    for case in importlib.import_module(f"survival.{name}").cases(full=False)
]


@pytest.fixture(scope="session")
def campaign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the undisturbed runs for comparison, which all workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "survival"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("promise", "case"), CASES, ids=[f"{promise}-{case}" for promise, case in CASES]
)
def test_the_promise_holds_in_every_case(promise: str, case: str, campaign_folder: Path) -> None:
    folder = campaign_folder / re.sub(r"\W+", "-", f"{promise} {case}")
    folder.mkdir()
    assert importlib.import_module(f"survival.{promise}").run(case, folder) == ""
    shutil.rmtree(folder)


def campaign(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the campaign script in its own process."""
    command = [
        sys.executable,
        "scripts/campaign.py",
        *arguments,
        "--folder",
        str(folder),
        "--jobs",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False
    )


@pytest.mark.slow
def test_a_run_that_is_killed_repeatedly_ends(tmp_path: Path) -> None:
    result = campaign(tmp_path, "spot")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_campaign_resumes_and_reports_failures(tmp_path: Path) -> None:
    first = campaign(tmp_path, "races")
    assert first.returncode == 0, first.stdout
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    forged = json.loads(lines[0]) | {"problem": "a forged failure"}
    (tmp_path / "results.jsonl").write_text(
        "\n".join([json.dumps(forged), *lines[1:-1]]) + '\n{"promise": "ra'
    )
    second = campaign(tmp_path, "races")
    assert second.returncode == 1, second.stdout
    again = [
        json.loads(line)
        for line in (tmp_path / "results.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    assert len(again) == len(lines)  # only the incomplete case was tried again


def test_a_case_that_raises_is_a_failure_with_a_traceback(tmp_path: Path) -> None:
    from types import SimpleNamespace

    import campaign as script

    assert "ZeroDivisionError" in script.outcome(
        SimpleNamespace(run=lambda case, place: 1 / 0), "any", tmp_path / "case"
    )
