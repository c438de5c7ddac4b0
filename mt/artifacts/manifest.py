"""The manifest of a model folder, and functions that read the files in it.

The size and SHA-256 of every file are checked before it is read, and links to files outside of the
folder are refused. A folder with a valid manifest may still be malicious, so JSON files and
safetensors headers are only parsed if they are not too large.
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
# The tensors in training/ are not listed, because there may be one file, or one file per rank.
TRAINING_REQUIRED = (f"{TRAINING}/state.json",)
MAX_JSON = 4 << 20  # maximum size of a JSON file in bytes
MAX_HEADER = (
    1 << 20
)  # maximum size of a safetensors header in bytes, for about ten thousand tensors
DAMAGED = "the folder is damaged (copy it again, or use another checkpoint)"


def seal(folder: Path) -> None:
    """Write the manifest of all files in a folder. This makes it a valid model folder."""
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
    """Check every file of a folder, and map its name to its size and SHA-256.

    Files in training/ are checked only if `with_training` is set, because translating does not need
    them, and users may delete them. Raises `CheckpointError` for the first file that differs from
    the manifest.
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
                        f"{path} is not in {MANIFEST}; remove it, or use another checkpoint"
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
    """Read the manifest, which maps the name of every file to its size and SHA-256.

    Raises `CheckpointError` if the manifest is not, byte for byte, what `seal` writes for the same
    files, or if a `required` file or folder is missing in it.
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
            f"{path} is not a manifest of mt; the folder is damaged or is not a model folder"
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
            f"{path} does not list {missing[0]}; the folder is damaged or is not a model folder"
        )
    return files


def _manifest(files: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest for the given files, which includes a hash of the list itself.

    The hash detects damage to entries of files that are not checked every time.
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
        raise CheckpointError(
            f"{path} is a link to a file outside of the folder; replace it by that file"
        )
    size = path.stat().st_size
    if size != expected.get("size"):
        raise CheckpointError(f"{path}: the size has changed to {size:,} bytes; {DAMAGED}")
    if sha256_file(path) != expected.get("sha256"):
        raise CheckpointError(f"{path}: the content has changed; {DAMAGED}")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Map the names of the tensors in a safetensors file to shapes, without reading the tensors.

    Raises `CheckpointError` for a damaged or oversized header.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER:
                raise CheckpointError(
                    f"{path}: the header has {size:,} bytes; the limit is {MAX_HEADER:,}"
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
    """Read a safetensors file, and map names to tensors. Raises `CheckpointError`."""
    tensor_shapes(path)  # raises an error for an oversized header
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
            raise CheckpointError(
                f"{path} has more than {MAX_JSON:,} bytes, so mt has not written it"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object, so mt has not written it")
    return value


def _as_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
