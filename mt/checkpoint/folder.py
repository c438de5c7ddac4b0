"""A model folder: a model with all that translating needs, and nothing outside it.

It holds config.yaml, model.safetensors, tokenizer/, generation.json, provenance.json and MANIFEST.json. A checkpoint is a model folder
with training/ (optimizer, raw weights where an average is kept, state.json) besides.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mt import __version__
from mt.checkpoint.manifest import (
    MANIFEST,
    MAX_JSON,
    read_json,
    read_tensors,
    seal,
    verify,
    write_json,
)
from mt.config import Config, DecodeConfig, config_from_text, to_yaml
from mt.config.ranking import rank
from mt.data.tokenizer import Tokenizer
from mt.errors import CheckpointError, ConfigError
from mt.files import atomic_dir
from mt.model.transformer import Transformer, build_model

SCORES = (
    "scores.json"  # of a checkpoint that was saved before it was validated; not in the manifest
)


@dataclass(frozen=True)
class LoadedModel:
    """What a model folder holds."""

    folder: Path
    config: Config
    tokenizer: Tokenizer
    model: Transformer
    provenance: dict[str, Any]
    files: dict[str, dict[str, Any]]  # size and SHA-256, verified


def write_model_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    provenance: Mapping[str, Any],
) -> None:
    """Fill an empty folder with a model; `seal` must follow."""
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
    )
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "generation.json", config.decode.model_dump())
    about = {
        "mt": __version__,
        "torch": torch.__version__,
        "src_lang": config.data.src_lang,
        "tgt_lang": config.data.tgt_lang,
    }
    write_json(folder / "provenance.json", {**about, **provenance})


def resolve_model(path: Path) -> Path:
    """The model folder that a user means: the folder itself, or the best, else the last checkpoint of a run folder.

    A run folder may have been copied by a tool that follows links, drops them, or makes text files of them.
    """
    if (path / MANIFEST).exists():
        return path
    folder = path / "checkpoints"
    for name in ("best", "last"):
        # Followed now: a run that goes on may point the link elsewhere while the model is being read.
        target = link_target(folder / name)
        if target is not None and not re.fullmatch(r"step_\d+", target):
            raise CheckpointError(
                f"{folder / name}: leads to {target}, which is no checkpoint of this run"
            )
        if target is not None and (folder / target / MANIFEST).exists():
            return folder / target
    if steps := [
        step for step in sorted(folder.glob("step_*"), reverse=True) if (step / MANIFEST).exists()
    ]:
        return _best_of(steps)
    for name in ("best", "last"):
        if (folder / name / MANIFEST).exists():
            return folder / name
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; give a model folder or a run folder")
    raise CheckpointError(
        f"{path}: neither a model folder ({MANIFEST} is missing) nor a run folder with checkpoints"
    )


def _best_of(steps: Sequence[Path]) -> Path:
    """Of checkpoints, newest first, the best by the metric of their run; the newest if none was validated."""
    metric = read_config(steps[0]).train.metric
    scored = [
        (step, scores)
        for step in steps
        if isinstance(scores := read_provenance(step).get("scores"), dict) and metric in scores
    ]
    return max(reversed(scored), key=lambda each: rank(metric, each[1]), default=(steps[0], {}))[0]


def link_target(link: Path) -> str | None:
    """The checkpoint that `best` or `last` of a run folder names: as a link, or as what tools that copy make of one.

    A text file holds the name; a folder is a copy, whose update its provenance says.
    """
    with contextlib.suppress(OSError, ValueError, CheckpointError):
        if link.is_symlink():
            return str(link.readlink())
        if link.is_dir():
            step = read_json(link / "provenance.json").get("step")
            name = f"step_{step:08d}" if isinstance(step, int) else ""
            return name if (link.parent / name / MANIFEST).exists() and name else None
        if link.is_file() and link.stat().st_size < 100:
            return link.read_text(encoding="utf-8").strip()
    return None


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where a model comes from; with the scores that validation gave it after it was saved. Raises `CheckpointError`."""
    about = read_json(folder / "provenance.json")
    return {**about, "scores": read_json(folder / SCORES)} if (folder / SCORES).exists() else about


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Verify and open a model folder or run folder. Raises `CheckpointError`."""
    folder = resolve_model(path)
    files = verify(folder)
    config = read_config(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    weights = read_tensors(folder / "model.safetensors")
    _check_size(config, tokenizer, weights, folder / "model.safetensors")
    model = build_model(config.model, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=0)
    load_weights(model, weights, folder / "model.safetensors")
    return LoadedModel(
        folder, config, tokenizer, model.to(device).eval(), read_provenance(folder), files
    )


def _check_size(
    config: Config, tokenizer: Tokenizer, weights: Mapping[str, Tensor], where: Path
) -> None:
    """Refuse a model that the weights cannot fill before its memory is asked for: `config.yaml` may name any size."""
    sizes = config.model
    num_layers = sizes.encoder_layers + sizes.decoder_layers
    fewest = (
        num_layers * (4 * sizes.d_model**2 + 2 * sizes.d_model * sizes.d_ff)
        + tokenizer.tgt_vocab_size * sizes.d_model
    )
    if num_layers > len(weights) or fewest > sum(tensor.numel() for tensor in weights.values()):
        raise CheckpointError(
            f"{where}: does not fit its config.yaml, which describes a model of more than {fewest:,} parameters"
        )


def load_weights(model: Transformer, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model by name. Raises `CheckpointError` where names or shapes differ."""
    own = dict(model.named_parameters())
    wrong = sorted(own.keys() ^ weights.keys()) + [
        n for n in own if n in weights and own[n].shape != weights[n].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: does not fit its config.yaml: {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def read_config(folder: Path) -> Config:
    """The configuration of a model folder. Raises `CheckpointError`."""
    path = folder / "config.yaml"
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: over {MAX_JSON:,} bytes; not what mt writes")
        config = config_from_text(path.read_text(encoding="utf-8"), str(path), is_saved=True)
        return config.model_copy(
            update={"decode": DecodeConfig.model_validate(read_json(folder / "generation.json"))}
        )
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
            raise CheckpointError(
                f"{other.folder}: another model or tokenizer than {first.folder}; average checkpoints of one run"
            )
    weights = [dict(each.model.named_parameters()) for each in loaded]
    with torch.no_grad():
        means = {
            name: torch.stack([each[name] for each in weights]).double().mean(dim=0).float()
            for name in weights[0]
        }
    with atomic_dir(out) as temporary:
        write_model_folder(
            temporary,
            first.config,
            means,
            first.tokenizer,
            {"average_of": [each.folder.name for each in loaded]},
        )
        seal(temporary)
