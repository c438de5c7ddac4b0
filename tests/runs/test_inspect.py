"""`mt inspect` reports what a folder contains, and names a damaged file."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import run_mt


def test_a_run_shows_its_state_model_data_and_every_checkpoint(trained_run: Path) -> None:
    result = run_mt("inspect", trained_run)
    assert result.returncode == 0, result.stderr
    folder = trained_run / "checkpoints"
    parameters = sum(
        t.numel() for t in load_file(folder / "step_00000012/model.safetensors").values()
    )
    for text in (
        "run folder",
        "done: train.max_steps: 12",
        "d_model 32",
        f"{parameters:,} parameters",
        "unigram, joint, 500 pieces",
    ):
        assert text in result.stdout, result.stdout
    for path in folder.glob("step_*"):
        assert path.name in result.stdout
    assert result.stdout.count("files intact") == len(list(folder.glob("step_*")))
    assert "last" in result.stdout
    assert "BLEU" in result.stdout


def test_json_contains_the_same_facts(trained_run: Path) -> None:
    report = json.loads(run_mt("inspect", trained_run, "--json").stdout)
    state = json.loads((trained_run / "checkpoints/last/training/state.json").read_text())
    assert report["status"]["state"] == "done"
    assert report["links"]["last"] == "step_00000012"
    last = report["checkpoints"][-1]
    assert (last["kind"], last["step"], last["error"]) == ("checkpoint", 12, None)
    assert last["scores"] == json.loads((trained_run / "checkpoints/last/scores.json").read_text())
    assert state["scores"] == {}  # the state was saved before the validation
    assert state["data"] in last["data"]


def test_a_model_folder_without_training_state_is_intact(trained_run: Path, tmp_path: Path) -> None:
    shutil.copytree(
        trained_run / "checkpoints/step_00000012",
        tmp_path / "model",
        ignore=shutil.ignore_patterns("training"),
    )
    result = run_mt("inspect", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert "model folder" in result.stdout
    assert "all intact" in result.stdout


@pytest.mark.parametrize("name", ["model.safetensors", "training/state.json", "tokenizer/src.spm"])
def test_a_damaged_file_is_named_and_the_exit_is_1(
    name: str, trained_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, symlinks=True)
    file = run / "checkpoints/step_00000008" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    for path in (run, run / "checkpoints/step_00000008"):
        result = run_mt("inspect", path)
        assert result.returncode == 1
        assert str(file) in result.stderr
        assert "DAMAGED" in result.stdout
    assert "step_00000012" in run_mt("inspect", run).stdout


@pytest.mark.parametrize("path", ["nowhere", "tests"])
def test_a_folder_that_mt_has_not_written_is_an_error(path: str) -> None:
    result = run_mt("inspect", path)
    assert result.returncode == 1
    assert path in result.stderr
    assert "Traceback" not in result.stderr
