"""A small sample of the survival campaign (scripts/campaign.py): real runs killed, signalled, raced, damaged and cut off from the disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def campaign(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The script in a process of its own."""
    command = [sys.executable, "scripts/campaign.py", *arguments, "--folder", str(folder), "--jobs", "1"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=550, check=False)


@pytest.mark.parametrize("promise", ["kills", "resume", "damage", "signals", "numbers", "disk", "races", "hostile", "ranks"])
def test_every_try_of_a_promise_is_kept(promise: str, tmp_path: Path) -> None:
    result = campaign(tmp_path, promise)
    assert result.returncode == 0, result.stdout + result.stderr
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert results
    assert not [line for line in results if line["problem"]]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends(tmp_path: Path) -> None:
    result = campaign(tmp_path, "spot")
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_campaign_goes_on_where_it_stopped_and_tells_what_was_not_kept(tmp_path: Path) -> None:
    first = campaign(tmp_path, "races")
    assert first.returncode == 0, first.stdout
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    forged = json.loads(lines[0]) | {"problem": "a forged failure"}
    (tmp_path / "results.jsonl").write_text("\n".join([json.dumps(forged), *lines[1:-1]]) + '\n{"promise": "ra')
    second = campaign(tmp_path, "races")
    assert second.returncode == 1, second.stdout
    again = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(again) == len(lines)  # only the one cut short was tried again
