"""Model folders and checkpoints: written whole or not at all, verified by size and SHA-256 before use, never unpickled.

A model folder holds config.yaml, model.safetensors, tokenizer/, generation.json, provenance.json and MANIFEST.json, and needs nothing
outside it. A checkpoint is a model folder with training/ (optimizer, raw weights where an average is kept, state.json) besides.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mt import __version__
from mt.config import Config, DecodeConfig, config_from_text, to_yaml
from mt.data.tokenizer import Tokenizer
from mt.errors import CheckpointError, ConfigError
from mt.files import atomic_dir, remove_leftovers, replace_link, sha256_file
from mt.metrics import is_better
from mt.model.transformer import Transformer, build_model

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
TRAINING = "training"


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: Transformer
    provenance: dict[str, Any]


@dataclass(frozen=True)
class TrainingState:
    """What a checkpoint holds besides the model: all that moves in training."""

    weights: dict[str, Tensor]        # as the optimizer left them
    average: dict[str, Tensor] | None  # their moving average, where one is kept
    optimizer: dict[str, Tensor]
    state: dict[str, Any]             # what JSON can hold


def write_model_folder(
    folder: Path, config: Config, weights: Mapping[str, Tensor], tokenizer: Tokenizer, provenance: Mapping[str, Any]
) -> None:
    """Fill an empty folder with a model; `seal` must follow."""
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    save_file({name: tensor.detach().contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    tokenizer.save(folder / "tokenizer")
    _write_json(folder / "generation.json", config.decode.model_dump())
    about = {"mt": __version__, "torch": torch.__version__, "src_lang": config.data.src_lang, "tgt_lang": config.data.tgt_lang}
    _write_json(folder / "provenance.json", {**about, **provenance})


def seal(folder: Path) -> None:
    """Write the manifest over all files of a folder; without it a folder is no model folder."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    _write_json(folder / MANIFEST, {"format": FORMAT_VERSION, "files": files})


def verify(folder: Path, *, with_training: bool = False) -> None:
    """Check every file of a folder against its manifest. Raises `CheckpointError` naming the first that differs.

    The training part is checked only on demand: translating needs none of it, and a kept best checkpoint may have lost it.
    """
    manifest = _read_json(folder / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or "model.safetensors" not in files:
        raise CheckpointError(f"{folder / MANIFEST}: not a manifest of mt; the folder is damaged or not a model")
    if manifest.get("format") != FORMAT_VERSION:
        raise CheckpointError(f"{folder}: format {manifest.get('format')}, this version of mt reads {FORMAT_VERSION}")
    for name, expected in files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise CheckpointError(f"{folder / MANIFEST}: {name!r} points out of the folder")
        if parts[0] != TRAINING or with_training:
            _verify_file(folder / name, expected)


def _verify_file(path: Path, expected: Any) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; the model folder is damaged (copy it again, or use another checkpoint)")
    size = path.stat().st_size
    if not isinstance(expected, dict) or size != expected.get("size"):
        raise CheckpointError(f"{path}: {size:,} bytes, not as written; the file is damaged (copy it again, or use another checkpoint)")
    if sha256_file(path) != expected.get("sha256"):
        raise CheckpointError(f"{path}: not the bytes that were written; the file is damaged (copy it again, or use another checkpoint)")


def resolve_model(path: Path) -> Path:
    """The model folder that a user means: the folder itself, or the best, else the last checkpoint of a run folder."""
    if (path / MANIFEST).exists():
        return path
    for link in ("best", "last"):
        if (path / "checkpoints" / link / MANIFEST).exists():
            # Followed now: a run that goes on may point the link elsewhere while the model is being read.
            return path / "checkpoints" / (path / "checkpoints" / link).readlink()
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run folder")
    raise CheckpointError(f"{path}: neither a model folder ({MANIFEST} is missing) nor a run folder with checkpoints")


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Verify and open a model folder or run folder. Raises `CheckpointError`."""
    folder = resolve_model(path)
    verify(folder)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    model = build_model(config.model, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=0)
    load_weights(model, read_tensors(folder / "model.safetensors"), folder / "model.safetensors")
    return LoadedModel(folder, config, tokenizer, model.to(device).eval(), _read_json(folder / "provenance.json"))


def load_weights(model: Transformer, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model by name. Raises `CheckpointError` where names or shapes differ."""
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ weights.keys()) + [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if wrong:
        raise CheckpointError(f"{where}: does not fit its config.yaml: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `CheckpointError`."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def read_config(folder: Path) -> Config:
    """The configuration of a model folder. Raises `CheckpointError`."""
    path = folder / "config.yaml"
    try:
        config = config_from_text(path.read_text(encoding="utf-8"), str(path))
        return config.model_copy(update={"decode": DecodeConfig.model_validate(_read_json(folder / "generation.json"))})
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder}: its configuration cannot be read: {error}") from error


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of several checkpoints' weights as a model folder with the configuration of the first.

    Raises `CheckpointError` for a damaged or different model and where `out` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another folder")
    loaded = [load_model(folder, torch.device("cpu")) for folder in folders]
    first = loaded[0]
    for other in loaded[1:]:
        if other.config.model != first.config.model or other.tokenizer.hash != first.tokenizer.hash:
            raise CheckpointError(f"{other.folder}: another model or tokenizer than {first.folder}; average checkpoints of one run")
    weights = [dict(each.model.named_parameters()) for each in loaded]
    with torch.no_grad():
        means = {name: torch.stack([each[name] for each in weights]).double().mean(dim=0).float() for name in weights[0]}
    with atomic_dir(out) as temporary:
        write_model_folder(temporary, first.config, means, first.tokenizer, {"average_of": [each.folder.name for each in loaded]})
        seal(temporary)


class CheckpointManager:
    """The checkpoints of one run: saving, the links `last` and `best`, which to keep, and where to go on."""

    def __init__(self, run_dir: Path, keep_last: int, keep_best: int, metric: str) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep_last, self.keep_best, self.metric = keep_last, keep_best, metric

    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*") if path.name[5:].isdigit())

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.folder / f"step_{step:08d}"

    def save(self, step: int, config: Config, tokenizer: Tokenizer, training: TrainingState, provenance: Mapping[str, Any]) -> Path:
        """Write a checkpoint, point the links at it, and delete those that need not be kept."""
        with atomic_dir(self.path(step)) as temporary:
            write_model_folder(temporary, config, training.average or training.weights, tokenizer, {"step": step, **provenance})
            (temporary / TRAINING).mkdir()
            if training.average is not None:
                save_file(training.weights, temporary / TRAINING / "weights.safetensors")
            save_file(training.optimizer, temporary / TRAINING / "optimizer.safetensors")
            _write_json(temporary / TRAINING / "state.json", training.state)
            seal(temporary)
        self.update_links()
        self._prune()
        return self.path(step)

    def update_links(self) -> None:
        """Point `last` at the newest and `best` at the best checkpoint."""
        for name, steps in (("last", self.steps()[::-1]), ("best", self.ranked())):
            if steps:
                replace_link(self.folder / name, self.path(steps[0]).name)

    def ranked(self) -> list[int]:
        """Validated steps, best first; of equals the earlier."""
        scored = {step: self._score(step) for step in self.steps()}
        sign = -1 if is_better(self.metric, 1.0, 0.0) else 1
        return sorted((step for step, score in scored.items() if score is not None), key=lambda step: (sign * (scored[step] or 0.0), step))

    def _score(self, step: int) -> float | None:
        """What validation in the run folder says of a step; a checkpoint may be older than its validation."""
        scores = self.folder.parent / "valid" / self.path(step).name / "scores.json"
        value = _read_json(scores).get(self.metric) if scores.exists() else None
        return float(value) if isinstance(value, int | float) else None

    def _prune(self) -> None:
        kept = {*self.steps()[-self.keep_last :], *self.ranked()[: self.keep_best]}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))

    def newest(self) -> tuple[Path, TrainingState] | None:
        """The newest checkpoint that is whole, None where there is none at all.

        A damaged one is moved aside with a warning. Raises `CheckpointError` where all are damaged.
        """
        remove_leftovers(self.folder)
        steps = self.steps()
        for step in reversed(steps):
            try:
                verify(self.path(step), with_training=True)
                return self.path(step), _read_training(self.path(step))
            except CheckpointError as error:
                aside = self.folder / f"damaged_{self.path(step).name}"
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
                logger.warning("%s\nmoved aside to %s; falling back to the checkpoint before it", error, aside)
        if steps:
            raise CheckpointError(f"{self.folder}: all {len(steps)} checkpoints are damaged; restore one, or choose another run_dir")
        return None


def run_checkpoints(run_dir: Path, last: int | None, best: int | None) -> list[Path]:
    """The newest `last`, or the best `best`, checkpoints of a run. Raises `CheckpointError` where there are fewer."""
    manager = CheckpointManager(run_dir, 1, 0, read_config(resolve_model(run_dir)).train.metric)
    steps, wanted = (manager.ranked(), best) if best is not None else (manager.steps()[::-1], last or 1)
    if len(steps) < wanted:
        raise CheckpointError(f"{run_dir}: {wanted} checkpoints asked for, {len(steps)} are there (train.keep_last, train.keep_best)")
    return [manager.path(step) for step in steps[:wanted]]


def _read_training(folder: Path) -> TrainingState:
    weights = read_tensors(folder / "model.safetensors")
    raw = folder / TRAINING / "weights.safetensors"
    average = weights if raw.exists() else None
    optimizer = read_tensors(folder / TRAINING / "optimizer.safetensors")
    state = _read_json(folder / TRAINING / "state.json")
    return TrainingState(weights if average is None else read_tensors(raw), average, optimizer, state)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not what mt writes")
    return value

