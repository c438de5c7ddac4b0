"""A model folder: a model with all that translating needs, and nothing outside it.

  config.yaml         every setting of its run, but for the search
  generation.json     how to search
  model.safetensors   weights
  tokenizer/          SentencePiece models
  provenance.json     where the model comes from
  MANIFEST.json       size and SHA-256 of all of these
A checkpoint is a model folder with training/ besides: state.json, the optimizer's tensors, and raw
weights if the model's are an average. If it was saved before it was validated, scores.json has its
scores, outside the manifest. A crash folder has batch.jsonl besides.
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
    """The files of a model folder, checkpoint or crash folder at `path`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def exists(self) -> bool:
        """Whether there is a model: without a manifest a folder is none."""
        return (self.path / MANIFEST).exists()

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer."""
        return self.path / "tokenizer"

    @property
    def weights_path(self) -> Path:
        """The file of the weights."""
        return self.path / "model.safetensors"

    @property
    def training(self) -> Path:
        """The folder with all that only training needs."""
        return self.path / TRAINING

    @property
    def batch_path(self) -> Path:
        """The file of a crash folder with what broke training."""
        return self.path / "batch.jsonl"

    @property
    def evaluations(self) -> Path:
        """Where evaluations are kept: in the run, or beside a model folder, whose files are sealed."""
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
        """Fill the empty folder with a model; `seal` must follow. `save_tokenizer` fills a folder."""
        settings = to_yaml(config, without=("decode",))
        (self.path / "config.yaml").write_text(settings, encoding="utf-8")
        tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        save_file(tensors, self.weights_path)
        save_tokenizer(self.tokenizer)
        write_json(self.path / "generation.json", config.decode.model_dump())
        languages = {"src_lang": config.data.src_lang, "tgt_lang": config.data.tgt_lang}
        about = {"mt": __version__, "torch": torch.__version__, **languages}
        write_json(self.path / "provenance.json", {**about, **provenance})

    def seal(self) -> None:
        """Write the manifest over all files."""
        seal(self.path)

    def verify(self, *, with_training: bool = False) -> dict[str, dict[str, Any]]:
        """Check every file against the manifest and return what it lists. Raises `CheckpointError`."""
        return verify(self.path, with_training=with_training)

    def config(self) -> Config:
        """The settings, those of the search included. Raises `CheckpointError`."""
        path = self.path / "config.yaml"
        try:
            if path.stat().st_size > MAX_JSON:
                raise CheckpointError(f"{path}: over {MAX_JSON:,} bytes; not what mt writes")
            config = config_from_text(path.read_text(encoding="utf-8"), str(path), is_saved=True)
            decode = DecodeConfig.model_validate(read_json(self.path / "generation.json"))
            return config.model_copy(update={"decode": decode})
        except (OSError, ValueError, ConfigError) as error:
            raise CheckpointError(f"{self}: its configuration cannot be read: {error}") from error

    def weights(self) -> dict[str, Tensor]:
        """The tensors by the names of the model's parameters. Raises `CheckpointError`."""
        return read_tensors(self.weights_path)

    def num_parameters(self) -> int:
        """The numbers in all tensors. Raises `CheckpointError`."""
        return sum(math.prod(shape) for shape in tensor_shapes(self.weights_path).values())

    def weights_hash(self) -> str:
        """SHA-256 of the weights, as the manifest has it."""
        return str(read_json(self.path / MANIFEST)["files"]["model.safetensors"]["sha256"])

    def provenance(self) -> dict[str, Any]:
        """Where the model comes from; with the scores that it got after it was saved, if it did.

        Raises `CheckpointError`.
        """
        about = read_json(self.path / "provenance.json")
        scores = self.path / SCORES
        return {**about, "scores": read_json(scores)} if scores.exists() else about

    def step(self) -> int | None:
        """The update after which the model was saved; None if it is no checkpoint."""
        step = read_json(self.path / "provenance.json").get("step")
        return step if isinstance(step, int) else None

    def write_scores(self, scores: Mapping[str, float]) -> None:
        """Put scores into a checkpoint that was saved before they were known."""
        atomic_write(self.path / SCORES, json.dumps(dict(scores), indent=2) + "\n")

    def training_state(self) -> dict[str, Any]:
        """What training goes on with, but for tensors. Raises `CheckpointError`."""
        return read_json(self.training / "state.json")


def average_checkpoints(folders: Sequence[Path], out: Path) -> None:
    """Write the mean of several models' weights as a model folder with the settings of the first.

    Raises `CheckpointError` for a damaged or different model, and if `out` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another folder")
    models = [ModelFolder(folder) for folder in folders]
    files = [model.verify() for model in models]
    configs = [model.config() for model in models]
    for model, other_files, config in zip(models, files, configs, strict=True):
        if config.model != configs[0].model or _tokenizer(other_files) != _tokenizer(files[0]):
            raise CheckpointError(
                f"{model}: another model or tokenizer than {models[0]}; average checkpoints of one run"
            )
    weights = [model.weights() for model in models]
    means = {
        name: torch.stack([each[name] for each in weights]).double().mean(dim=0).float()
        for name in weights[0]
    }
    with atomic_dir(out) as temporary:
        about = {"average_of": [model.path.name for model in models]}
        save_tokenizer = partial(shutil.copytree, models[0].tokenizer)
        ModelFolder(temporary).write(configs[0], means, save_tokenizer, about)
        seal(temporary)


def _tokenizer(files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The SHA-256 of each file of a model's tokenizer."""
    return {name: file["sha256"] for name, file in files.items() if name.startswith("tokenizer/")}
