"""Create small model folders to convert, and hide installed packages."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.artifacts import ModelFolder
from mt.config import Config
from mt.data.tokenizer import EOS_ID, Tokenizer
from mt.decode.loading import LoadedModel, load_model
from mt.model.transformer import build_model


def model_folder(folder: Path, tokenizer: Tokenizer, **options: Any) -> LoadedModel:
    """Write an untrained model that has clear preferences, and random norms and biases."""
    sizes = {"d_model": 32, "d_ff": 48, "num_heads": 2, "encoder_layers": 2, "decoder_layers": 1}
    settings = {
        "model": {**sizes, **options},
        "decode": {"max_len_a": 0.5, "max_len_b": 3},
        "data": {"test": [{"src": "data/sample/test.de", "tgt": "data/sample/test.en"}]},
    }
    config = Config.model_validate(settings)
    model = build_model(config.model, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    model.output_weight.data *= 3
    model.output_weight.data[EOS_ID] *= 1.5
    folder.mkdir()
    ModelFolder(folder).write(config, dict(model.named_parameters()), tokenizer.save, {})
    ModelFolder(folder).seal()
    return load_model(folder, torch.device("cpu"))


def hide_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make importing the package fail, as if the package were not installed."""
    monkeypatch.setitem(sys.modules, name, None)
