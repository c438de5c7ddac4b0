"""The manifest of a model folder, and functions that read the files in it.

Every file is checked by size and SHA-256 before it is read, and links that lead out of the folder
are refused. A folder with a valid manifest may still be malicious, so the sizes of JSON files and
safetensors headers are limited before they are parsed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mt.errors import CheckpointError
from mt.files import sha256_file

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
TRAINING = "training"
REQUIRED = ("config.yaml", "model.safetensors", "generation.json", "provenance.json", "tokenizer")
# The tensors in training/ are not listed: they may be one file, or one file per rank.
TRAINING_REQUIRED = (f"{TRAINING}/state.json",)
MAX_JSON = 4 << 20  # bytes of a JSON file
MAX_HEADER = 1 << 20  # bytes of a safetensors header, enough for about ten thousand tensors
DAMAGED = "the folder is damaged (copy it again, or use another checkpoint)"


def seal(folder: Path) -> None:
    """Write the manifest of all files in a folder, which makes it a valid model folder."""
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST, _manifest(files))


def verify(folder: Path, *, with_training: bool = False) -> dict[str, dict[str, Any]]:
    """Check every file of a folder against its manifest, and return the size and SHA-256 by name.

    Files in training/ are checked only if `with_training` is set, because translating does not need
    them and a user may have deleted them. Raises `CheckpointError` for the first file that differs.
    """
    files = _files(folder, REQUIRED + TRAINING_REQUIRED if with_training else REQUIRED)
    for name in files:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise CheckpointError(f"{folder / MANIFEST}: {name!r} is outside of the folder")
    try:
        for part in ("tokenizer", TRAINING) if with_training else ("tokenizer",):
            for path in (folder / part).iterdir():
                if f"{part}/{path.name}" not in files:
                    raise CheckpointError(
                        f"{path}: not in {MANIFEST}; remove it, or use another checkpoint"
                    )
        for name, expected in files.items():
            if with_training or not name.startswith(f"{TRAINING}/"):
                _verify_file(folder, name, expected)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder}: cannot be read: {error.strerror}; {DAMAGED}"
        ) from error
    return files


def _files(folder: Path, required: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read the manifest, and return the size and SHA-256 of every file by name.

    Raises `CheckpointError` unless the manifest is byte for byte what `seal` writes for the same
    files, and lists all `required` files and folders.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    files = manifest.get("files")
    entries = files.values() if isinstance(files, dict) else []
    if manifest.get("format", FORMAT_VERSION) != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}: format {manifest['format']}, "
            f"but this version of mt reads only format {FORMAT_VERSION}"
        )
    if not entries or not all(
        isinstance(entry, dict) and [*map(type, entry.values())] == [int, str] for entry in entries
    ):
        raise CheckpointError(
            f"{path}: not a manifest of mt; the folder is damaged or not a model folder"
        )
    assert isinstance(files, dict)
    if path.read_text(encoding="utf-8") != _as_json(_manifest(files)):
        raise CheckpointError(f"{path}: the content has changed; {DAMAGED}")
    if missing := [
        name
        for name in required
        if name not in files and not any(file.startswith(f"{name}/") for file in files)
    ]:
        raise CheckpointError(
            f"{path}: does not list {missing[0]}; the folder is damaged or not a model folder"
        )
    return files


def _manifest(files: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of these files, with a hash of the list itself.

    The hash detects damage to entries whose files are not checked every time.
    """
    return {
        "format": FORMAT_VERSION,
        "sha256": hashlib.sha256(_as_json(files).encode()).hexdigest(),
        "files": files,
    }


def _verify_file(folder: Path, name: str, expected: dict[str, Any]) -> None:
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {DAMAGED}")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path}: a link out of the folder; replace it with the file itself")
    size = path.stat().st_size
    if size != expected.get("size"):
        raise CheckpointError(f"{path}: the size has changed to {size:,} bytes; {DAMAGED}")
    if sha256_file(path) != expected.get("sha256"):
        raise CheckpointError(f"{path}: the content has changed; {DAMAGED}")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file by name, without reading the tensors.

    Raises `CheckpointError` for a damaged or oversized header.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                raise CheckpointError(
                    f"{path}: a header of {size:,} bytes; the limit is {MAX_HEADER:,}"
                )
            header = json.loads(file.read(size))
        return {
            name: [int(n) for n in entry["shape"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises `CheckpointError`."""
    tensor_shapes(path)  # refuses an oversized header
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object to a file."""
    path.write_text(_as_json(value), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises `CheckpointError`."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: over {MAX_JSON:,} bytes; not written by mt")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; not written by mt")
    return value


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
