"""The manifest of a model folder: changed files, changed manifests and links are detected."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mt.artifacts import MANIFEST, CheckpointManager, checkpoints, manifest, seal, verify
from mt.errors import CheckpointError


@pytest.fixture
def folder(trained_run: Path, tmp_path: Path) -> Path:
    """Return a checkpoint in a copy of the trained run."""
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run/checkpoints/step_00000012"


def rewrite(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    """Return a function that applies `change` to a manifest's entries, and keeps it valid."""

    def harm(folder: Path) -> None:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        change(files)
        manifest.write_json(folder / MANIFEST, manifest._manifest(files))

    return harm


def append(text: str) -> Callable[[Path], object]:
    """Return a function that appends `text` to the manifest."""
    return lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + text)


def change_a_digit(folder: Path) -> None:
    """Change a digit of the SHA-256 that the manifest gives for a file in training/."""
    text = (folder / MANIFEST).read_text()
    place = text.index('"sha256"', text.index("training/optimizer")) + 12
    (folder / MANIFEST).write_text(
        f"{text[:place]}{'1' if text[place] == '0' else '0'}{text[place + 1 :]}"
    )


HARMS = {
    "a space at the end": (append(" "), "the content has changed"),
    "a line too many": (append("\n"), "the content has changed"),
    "its last byte gone": (
        lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-1]),
        "the content has changed",
    ),
    "a digit of a file that is not read": (change_a_digit, "the content has changed"),
    "another size": (rewrite(lambda files: files["config.yaml"].update(size=1)), "config.yaml"),
    "a size that is text": (
        rewrite(lambda files: files["config.yaml"].update(size="1")),
        "not a manifest",
    ),
    "no tokenizer": (
        rewrite(lambda files: [files.pop(f"tokenizer/{side}.spm") for side in ("src", "tgt")]),
        "tokenizer",
    ),
    "no optimizer": (
        rewrite(lambda files: files.pop("training/optimizer.safetensors")),
        "optimizer.safetensors",
    ),
    "a tokenizer besides": (
        lambda f: shutil.copy(f / "config.yaml", f / "tokenizer/joint.spm"),
        "joint.spm is not in MANIFEST.json",
    ),
    "weights besides": (
        lambda f: shutil.copy(f / "config.yaml", f / "training/more.safetensors"),
        "more.safetensors is not in",
    ),
    "no folder of the tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer"),
}


@pytest.mark.parametrize("kind", HARMS)
def test_a_changed_manifest_or_an_unlisted_file_is_detected(kind: str, folder: Path) -> None:
    verify(folder, with_training=True)
    harm, message = HARMS[kind]
    harm(folder)
    with pytest.raises(CheckpointError, match=message):
        verify(folder, with_training="optimizer" in kind or "weights" in kind)


def test_a_readme_in_the_folder_is_allowed(folder: Path) -> None:
    (folder / "README.md").write_text("What this model is for.")
    verify(folder, with_training=True)
    assert CheckpointManager(folder.parent.parent, 2, 1, "bleu").newest() is not None


def test_only_links_within_the_folder_are_followed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    verify(folder)
    (folder / "weights").rename(folder.parent.parent / "weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a link to a file outside"):
        verify(folder)


def test_an_unreadable_file_counts_as_damage_and_the_previous_checkpoint_is_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = manifest.sha256_file

    def unreadable(path: Path) -> str:
        if path == folder / "training/optimizer.safetensors":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(manifest, "sha256_file", unreadable)
    newest = CheckpointManager(folder.parent.parent, 2, 1, "bleu").newest()
    assert newest is not None
    assert newest.path.name == "step_00000008"
    assert (folder.parent / "last").readlink() == Path("step_00000008")


def test_links_that_cannot_be_made_are_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(link: Path, target: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "replace_link", full)
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    CheckpointManager(folder.parent.parent, 2, 1, "bleu").tidy()
    assert "No space left on device" in caplog.text


def test_a_sealed_folder_verifies(folder: Path) -> None:
    (folder / "config.yaml").write_text("seed: 7\n")
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        verify(folder)
    (folder / MANIFEST).unlink()
    seal(folder)
    verify(folder)
