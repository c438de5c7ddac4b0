"""Training that begins with a model: its tokenizer, sizes and weights are taken over, and some of its parameters may stay as they are."""

import fnmatch
import logging
from pathlib import Path

from mt.checkpoint import load_weights, read_config, resolve_model, verify
from mt.checkpoint.manifest import read_tensors
from mt.config import Config
from mt.errors import ConfigError
from mt.model.transformer import Transformer

logger = logging.getLogger(__name__)
OWN = {
    "preset",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "embedding_dropout",
}  # of a run, whatever its model was trained with


def with_initial_model(config: Config) -> tuple[Config, list[str]]:
    """`config` with the sizes and the tokenizer of the model that `train.init_from` names, and what that changes.

    Of a run folder, `train.init_from` becomes the checkpoint that is meant now. Raises `CheckpointError` where there is no such model.
    """
    if config.train.init_from is None:
        return config, []
    folder = resolve_model(Path(config.train.init_from))
    theirs = read_config(folder)
    ours = config.model.model_dump()
    taken = {key: value for key, value in theirs.model.model_dump().items() if key not in OWN}
    changes = [
        f"model.{key}: {value}, as in {folder} (not {ours[key]})"
        for key, value in taken.items()
        if ours[key] != value
    ]
    model = config.model.model_copy(update={**taken, "preset": theirs.model.preset})
    train = config.train.model_copy(update={"init_from": str(folder)})
    return config.model_copy(
        update={"model": model, "tokenizer": theirs.tokenizer, "train": train}
    ), changes


def as_begun(config: Config, before: Config) -> Config:
    """`config` with what a run took over from its initial model when it began; that model may have changed since, or be gone."""
    taken = {key: value for key, value in before.model.model_dump().items() if key not in OWN}
    model = config.model.model_copy(update={**taken, "preset": before.model.preset})
    train = config.train.model_copy(update={"init_from": before.train.init_from})
    return config.model_copy(update={"model": model, "tokenizer": before.tokenizer, "train": train})


def initialize(model: Transformer, config: Config, is_new: bool = True) -> None:
    """Give the model of a new run the weights of `train.init_from`, and freeze what `train.freeze` names.

    Raises `ConfigError`, `CheckpointError`.
    """
    if is_new and config.train.init_from is not None:
        folder = Path(config.train.init_from)
        verify(folder)
        load_weights(
            model, read_tensors(folder / "model.safetensors"), folder / "model.safetensors"
        )
    parameters = dict(model.named_parameters())
    trained = [p for p in parameters.values() if p.requires_grad]
    for pattern in config.train.freeze:
        matched = fnmatch.filter(parameters, pattern)
        if not matched:
            raise ConfigError(
                f"train.freeze: {pattern!r} matches no parameter; they are named such as {', '.join(list(parameters)[:3])}"
            )
        for name in matched:
            parameters[name].requires_grad_(False)
    frozen = sum(p.numel() for p in trained if not p.requires_grad)
    if frozen == sum(p.numel() for p in trained):
        raise ConfigError("train.freeze: nothing is left to be trained")
    if frozen:
        logger.info("frozen: %s parameters", f"{frozen:,}")
