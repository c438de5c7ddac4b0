"""A model folder: a model and everything needed to translate with it.

  config.yaml         all settings of the run, except the search settings
  generation.json     the search settings
  model.safetensors   the weights
  tokenizer/          the SentencePiece models
  provenance.json     how the model was made
  MANIFEST.json       size and SHA-256 of all other files

A checkpoint also contains training/ with state.json, the optimizer's tensors and, if the model is
an average, the raw weights. If validation runs after a checkpoint is saved, the scores are added
later in scores.json, which is not listed in the manifest. A crash folder also contains batch.jsonl.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mt import __version__
from mt.artifacts.manifest import (
    MANIFEST,
    MAX_JSON,
    TRAINING,
    read_json,
    read_tensors,
    seal,
    tensor_shapes,
    verify,
    write_json,
)
from mt.config import Config, DecodeConfig, config_from_text, to_yaml
from mt.errors import CheckpointError, ConfigError
from mt.files import atomic_dir, atomic_write

SCORES = "scores.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model folder, checkpoint or crash folder, which is at `path`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether the folder is a model folder, which means that it has a manifest."""
        return (self.path / MANIFEST).exists()

    @property
    def tokenizer(self) -> Path:
        """The folder with the files of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def weights_path(self) -> Path:
        """The file with the weights."""
        return self.path / "model.safetensors"

    @property
    def training(self) -> Path:
        """The folder with the files that are needed only to resume training."""
        return self.path / TRAINING

    @property
    def batch_path(self) -> Path:
        """The file of a crash folder with the batch that stopped training."""
        return self.path / "batch.jsonl"

    @property
    def evaluations(self) -> Path:
        """The folder for evaluations of this model.

        For a checkpoint, it is in the run folder. For any other model folder, it is next to that
        folder, because a model folder must not change once it has a manifest.
        """
        if self.path.parent.name == "checkpoints":
            return self.path.parent.parent / "evaluations" / self.path.name
        return self.path.parent / f"{self.path.name}.evaluations"

    def write(
        self,
        config: Config,
        weights: Mapping[str, Tensor],
        save_tokenizer: Callable[[Path], object],
        provenance: Mapping[str, Any],
    ) -> None:
        """Write the files of a model into the empty folder. Call `seal` afterwards.

        `save_tokenizer` writes the tokenizer into the folder that it is given.
        """
        settings = to_yaml(config, without=("decode",))
        (self.path / "config.yaml").write_text(settings, encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        save_file(tensors, self.weights_path)
        save_tokenizer(self.tokenizer)
        write_json(self.path / "generation.json", config.decode.model_dump())
        provenance = {
            "mt": __version__,
            "torch": torch.__version__,
            "src_lang": config.data.src_lang,
            "tgt_lang": config.data.tgt_lang,
            **provenance,
        }
        write_json(self.path / "provenance.json", provenance)

    def seal(self) -> None:
        """Write the manifest of all files in the folder."""
        seal(self.path)

    def verify(self, *, with_training: bool = False) -> dict[str, dict[str, Any]]:
        """Check the files, and return the entries of the manifest; see `manifest.verify`."""
        return verify(self.path, with_training=with_training)

    def config(self) -> Config:
        """Read the settings, including the search settings. Raises `CheckpointError`."""
        path = self.path / "config.yaml"
        try:
            if path.stat().st_size > MAX_JSON:
                raise CheckpointError(
                    f"{path} has more than {MAX_JSON:,} bytes, so mt has not written it"
                )
            config = config_from_text(path.read_text(encoding="utf-8"), str(path), is_saved=True)
            decode = DecodeConfig.model_validate(read_json(self.path / "generation.json"))
            return config.model_copy(update={"decode": decode})
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{self}: cannot read the configuration: {error}") from error

    def weights(self) -> dict[str, Tensor]:
        """Read the weights, keyed by parameter name. Raises `CheckpointError`."""
        return read_tensors(self.weights_path)

    def num_parameters(self) -> int:
        """Count the model's parameters. Raises `CheckpointError`."""
        return sum(math.prod(shape) for shape in tensor_shapes(self.weights_path).values())

    def weights_hash(self) -> str:
        """Return the SHA-256 of the weights from the manifest."""
        return str(read_json(self.path / MANIFEST)["files"]["model.safetensors"]["sha256"])

    def provenance(self) -> dict[str, Any]:
        """Read how the model was made and its validation scores. Raises `CheckpointError`."""
        provenance = read_json(self.path / "provenance.json")
        scores = self.path / SCORES
        return {**provenance, "scores": read_json(scores)} if scores.exists() else provenance

    def step(self) -> int | None:
        """Return the update after which the model was saved, or None if it is not a checkpoint."""
        step = read_json(self.path / "provenance.json").get("step")
        return step if isinstance(step, int) else None

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Add validation scores to a checkpoint that was saved before they were known."""
        atomic_write(self.path / SCORES, json.dumps(dict(scores), indent=2) + "\n")

    def training_state(self) -> dict[str, Any]:
        """Read the state of training, except for tensors. Raises `CheckpointError`."""
        return read_json(self.training / "state.json")


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write a model folder with the mean weights of several models.

    All other files are those of the first model.
    Raises `CheckpointError` if a model is damaged, if the models or tokenizers differ, or if `out`
    exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: already exists; choose another folder")
    models = [ModelFolder(folder) for folder in folders]
    files = [model.verify() for model in models]
    configs = [model.config() for model in models]
    for model, other_files, config in zip(models, files, configs, strict=True):
        if config.model != configs[0].model or _tokenizer(other_files) != _tokenizer(files[0]):
            raise CheckpointError(
                f"{model}: the model or the tokenizer is not the same as in {models[0]}; "
                "average checkpoints of the same run"
            )
    weights = [model.weights() for model in models]
    means = {
        name: torch.stack([tensors[name] for tensors in weights]).double().mean(dim=0).float()
        for name in weights[0]
    }
    with atomic_dir(out) as temporary:
        provenance = {"average_of": [model.path.name for model in models]}
        save_tokenizer = partial(shutil.copytree, models[0].tokenizer)
        ModelFolder(temporary).write(configs[0], means, save_tokenizer, provenance)
        seal(temporary)


def _tokenizer(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Map each tokenizer file to its SHA-256, given the entries of a manifest."""
    return {name: file["sha256"] for name, file in files.items() if name.startswith("tokenizer/")}
