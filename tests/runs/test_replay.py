"""A batch that breaks training is saved in a crash folder, and breaks in the same place when it is
replayed.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mt.artifacts import MANIFEST, seal
from mt.config import load_config
from mt.data.batch import collate, pack, unbatch
from mt.runs.replay import replay
from tests.conftest import run_mt

PAIRS = [([5, 6, 7], [8]), ([9], [10, 11, 12, 13]), ([14, 15], [16, 17])]


@pytest.mark.parametrize("make", [collate, pack])
def test_unbatch_returns_the_pairs_that_a_batch_was_made_from(make: Callable[..., object]) -> None:
    assert unbatch(make(PAIRS)) == PAIRS  # type: ignore[arg-type]


@pytest.fixture
def crashed(trained_run: Path, small_yaml: Callable[..., Path], tmp_path: Path) -> Path:
    """Return the configuration of a run whose last checkpoint has embeddings of 1e38, so that the
    next update is not finite.
    """
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    config = small_yaml(tmp_path)
    text = (
        (tmp_path / "run/config.yaml").read_text().replace(str(trained_run), str(tmp_path / "run"))
    )
    (tmp_path / "run/config.yaml").write_text(text)
    folder = tmp_path / "run/checkpoints/step_00000012"
    weights = load_file(folder / "training/weights.safetensors")
    weights["encoder.embed_tokens.weight"][100:] = 1e38
    save_file(weights, folder / "training/weights.safetensors")
    (folder / MANIFEST).unlink()
    seal(folder)
    return config


def test_a_batch_that_breaks_training_exits_3_and_can_be_replayed(
    crashed: Path, tmp_path: Path
) -> None:
    result = run_mt("train", crashed, "train.max_steps=20")
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert "optim.lr" in result.stderr
    folder = tmp_path / "run/crash/step_00000013"
    assert f"mt replay {folder}" in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"
    pairs = [json.loads(line) for line in (folder / "batch.jsonl").read_text().splitlines()]
    assert {pair["micro_batch"] for pair in pairs} == {0, 1}
    known = (
        load_config(crashed).data.train[0].src or "",
        load_config(crashed).data.train[0].tgt or "",
    )
    for side, path in zip(("src", "tgt"), known, strict=True):
        lines = set(Path(path).read_text(encoding="utf-8").split("\n"))
        assert {pair[side] for pair in pairs} <= lines
    again = run_mt("replay", folder)
    assert again.returncode == 3, again.stderr
    assert "the first value that is not finite is in the output of encoder" in again.stdout
    assert "batch.jsonl" in again.stderr


def test_a_replay_with_good_weights_gives_the_loss_of_training(
    crashed: Path, trained_run: Path, tmp_path: Path
) -> None:
    assert run_mt("train", crashed, "train.max_steps=20").returncode == 3
    folder = tmp_path / "run/crash/step_00000013"
    good = load_file(trained_run / "checkpoints/step_00000012/training/weights.safetensors")
    save_file(good, folder / "model.safetensors")
    (folder / MANIFEST).unlink()
    seal(folder)
    torch.set_num_threads(1)
    micro_batches = replay(folder, "cpu")
    assert all(micro.finite and micro.culprit is None for micro in micro_batches)
    pairs = [json.loads(line) for line in (folder / "batch.jsonl").read_text().splitlines()]
    shutil.rmtree(tmp_path / "run")
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    straight = run_mt("train", crashed, "train.max_steps=13", "train.log_every=1")
    assert straight.returncode == 0, straight.stderr
    metrics = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in metrics[-2:]]
    loss = next(line["loss"] for line in last if line["kind"] == "train")
    tokens = [
        sum(len(p["tgt_ids"]) + 1 for p in pairs if p["micro_batch"] == index) for index in (0, 1)
    ]
    mean = sum(micro.loss * n for micro, n in zip(micro_batches, tokens, strict=True)) / sum(tokens)
    assert mean == pytest.approx(loss, abs=1e-6)


def test_a_folder_that_is_not_a_crash_folder_is_refused(trained_run: Path) -> None:
    result = run_mt("replay", trained_run / "checkpoints/last")
    assert result.returncode == 1
    assert "not a crash folder" in result.stderr
