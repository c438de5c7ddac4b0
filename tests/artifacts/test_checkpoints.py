"""Saving, keeping and deleting checkpoints, compared with a plain computation of what is kept."""

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mt.artifacts import CheckpointManager, TrainingState, checkpoints, verify
from mt.config import Config
from mt.errors import CheckpointError

BLEU = {1: 10.0, 2: 30.0, 3: 20.0, 4: 30.0, 5: 5.0}  # keyed by step


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    return CheckpointManager(tmp_path / "run", keep_last=2, keep_best=1, metric="bleu")


def training_state(step: int, average: bool = True) -> TrainingState:
    weights = {"w": torch.full((2, 3), float(step))}
    moments = {"exp_avg.w": torch.full((2, 3), step / 2)}
    return TrainingState(
        weights, {"w": weights["w"] + 0.5} if average else None, moments, {"step": step}
    )


def save_tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "joint.spm").write_bytes(b"pieces")


def save(manager: CheckpointManager, step: int, average: bool = True) -> Path:
    return manager.save(step, Config(), save_tokenizer, training_state(step, average), {"by": "me"})


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file and the target of every link."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    } | {path.name: os.fsencode(path.readlink()) for path in folder.iterdir() if path.is_symlink()}


@pytest.mark.parametrize("average", [True, False])
def test_a_checkpoint_contains_what_was_saved(manager: CheckpointManager, average: bool) -> None:
    folder, state = save(manager, 7, average), training_state(7, average)
    verify(folder, with_training=True)
    expected = {
        "model.safetensors": state.average or state.weights,
        "training/optimizer.safetensors": state.optimizer,
        **({"training/weights.safetensors": state.weights} if average else {}),
    }
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.safetensors")} == set(expected)
    for name, tensors in expected.items():
        stored = load_file(folder / name)
        assert stored.keys() == tensors.keys()
        assert all(torch.equal(stored[key], tensors[key]) for key in tensors)
    assert json.loads((folder / "training/state.json").read_text()) == {"step": 7}
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["step"], provenance["by"]) == (7, "me")
    assert (folder / "tokenizer/joint.spm").read_bytes() == b"pieces"


def test_a_saved_state_loads_into_other_tensors(manager: CheckpointManager) -> None:
    save(manager, 7)
    other = training_state(1)
    assert other.load(manager.run.checkpoint(7)) == {"step": 7}
    for loaded, saved in zip(
        (other.weights, other.average, other.optimizer),
        (training_state(7).weights, training_state(7).average, training_state(7).optimizer),
        strict=True,
    ):
        assert loaded is not None
        assert saved is not None
        assert torch.equal(*(next(iter(tensors.values())) for tensors in (loaded, saved)))


def test_after_each_save_only_the_last_two_and_the_best_are_left(
    manager: CheckpointManager,
) -> None:
    for step, bleu in BLEU.items():
        manager.run.write_validation(step, [], {"bleu": bleu, "measured": "valid"})
        save(manager, step)
        so_far = range(1, step + 1)
        best = max(so_far, key=lambda saved: (BLEU[saved], -saved))
        assert manager.steps() == sorted({*so_far[-2:], best})
        assert (manager.folder / "last").resolve() == manager.path(step)
        assert (manager.folder / "best").resolve() == manager.path(best)


def test_scores_of_other_validation_data_do_not_count(manager: CheckpointManager) -> None:
    for step, fingerprint in ((1, "old"), (2, "new")):
        manager.run.write_validation(step, [], {"bleu": BLEU[step], "measured": fingerprint})
        save(manager, step)
    manager.valid_fingerprint = "old"
    assert manager.ranked() == [1]
    assert manager.ranked(comparable_only=False) == [2, 1]
    assert manager.scores(2) is None
    assert manager.scores(3, comparable_only=False) == {}


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["ModelFolder.write", "ModelFolder.seal", "save_file"])
def test_a_save_that_fails_changes_nothing(
    where: str, manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(manager, 1)
    before = files(manager.folder)
    with monkeypatch.context() as patch:
        patch.setattr(f"mt.artifacts.checkpoints.{where}", fail)
        with pytest.raises(CheckpointError, match=r"step_00000002: could not be written.*No space"):
            save(manager, 2)
    assert files(manager.folder) == before
    save(manager, 2)
    assert manager.steps() == [1, 2]


def test_a_full_disk_is_noticed_before_anything_is_written(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SPARE", 1 << 60)
    with pytest.raises(
        CheckpointError, match=r"a checkpoint needs .* MiB, but only .* MiB are free"
    ):
        save(manager, 1)
    assert list(manager.folder.iterdir()) == []


@pytest.mark.parametrize("has_original", [True, False])
def test_a_copied_checkpoint_in_the_place_of_a_link_makes_room(
    has_original: bool, manager: CheckpointManager
) -> None:
    """The folder looks as if `cp -rL` had copied it and replaced the link with its target."""
    save(manager, 1)
    last = manager.folder / "last"
    last.unlink()
    if has_original:
        last.mkdir()
        (last / "provenance.json").write_text('{"step": 1}')
    else:
        manager.path(1).rename(last)
    save(manager, 2)
    assert last.readlink() == Path("step_00000002")
    assert (manager.folder / "copied_last").exists() != has_original


def test_a_link_that_cannot_be_made_is_a_warning(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints, "replace_link", fail)
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    save(manager, 1)
    assert manager.steps() == [1]
    assert "could not update links" in caplog.text


@pytest.mark.parametrize("num_damaged", [1, 2])
def test_the_newest_undamaged_checkpoint_is_found(
    num_damaged: int, manager: CheckpointManager
) -> None:
    for step in (1, 2):
        save(manager, step)
    for step in (2, 1)[:num_damaged]:
        (manager.path(step) / "training/optimizer.safetensors").write_bytes(b"")
    if num_damaged == 2:
        with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
            manager.newest()
    else:
        assert manager.newest() == manager.run.checkpoint(1)
        assert (manager.folder / "last").readlink() == Path("step_00000001")
    assert (manager.folder / "damaged_step_00000002").is_dir()
