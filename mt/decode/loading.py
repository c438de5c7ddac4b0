"""Opens a model folder: settings, tokenizer and network, after verifying every file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt.artifacts import ModelFolder, find_model
from mt.config import Config
from mt.data.tokenizer import Tokenizer
from mt.errors import CheckpointError
from mt.model.transformer import Transformer


@dataclass(frozen=True)
class LoadedModel:
    """The content of a model folder."""

    folder: ModelFolder
    config: Config
    tokenizer: Tokenizer
    model: Transformer
    provenance: dict[str, Any]
    files: dict[str, dict[str, Any]]  # the size and SHA-256 of each file, which have been verified


def load_model(path: Path, device: torch.device) -> LoadedModel:
    """Verify and open a model folder or run folder (see `find_model`). Raises `CheckpointError`.

    On a CPU, the weights are memory-mapped, so they are read from their file on first use.
    """
    folder = find_model(path)
    files = folder.verify()
    config = folder.config()
    tokenizer = Tokenizer.load(folder.tokenizer)
    weights = folder.weights()
    _check_size(config, tokenizer, weights, folder.weights_path)
    with torch.device("meta"):
        model = Transformer(config.model, *tokenizer.vocab_sizes)
    check_weights(model, weights, folder.weights_path)
    for name, parameter in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        loaded = nn.Parameter(weights[name], requires_grad=parameter.requires_grad)
        setattr(model.get_submodule(owner), attribute, loaded)
    model = model.to(device).eval()
    return LoadedModel(folder, config, tokenizer, model, folder.provenance(), files)


def _check_size(
    config: Config, tokenizer: Tokenizer, weights: Mapping[str, Tensor], where: Path
) -> None:
    """Raise `CheckpointError` if the configuration describes a larger model than the weights.

    This is checked before the model is built, because `config.yaml` could contain any size.
    """
    sizes = config.model
    num_layers = sizes.encoder_layers + sizes.decoder_layers
    per_layer = 4 * sizes.d_model**2 + 2 * sizes.d_model * sizes.d_ff
    fewest = num_layers * per_layer + tokenizer.tgt_vocab_size * sizes.d_model
    if num_layers > len(weights) or fewest > sum(tensor.numel() for tensor in weights.values()):
        raise CheckpointError(
            f"{where} does not fit its config.yaml, "
            f"which describes a model of more than {fewest:,} parameters"
        )


def load_weights(model: Transformer, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a model by name. Raises `CheckpointError` if names or shapes differ."""
    check_weights(model, weights, where)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def check_weights(model: Transformer, weights: Mapping[str, Tensor], where: Path) -> None:
    """Raise `CheckpointError` if names or shapes differ from those of the model."""
    expected = dict(model.named_parameters())
    wrong = sorted(expected.keys() ^ weights.keys()) + [
        n for n in expected if n in weights and expected[n].shape != weights[n].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where} does not fit its config.yaml: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
        )
