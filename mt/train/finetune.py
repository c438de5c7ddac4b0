"""Training that begins with a model: its weights are taken over, and some parameters may stay as
they are.
"""

import fnmatch
import logging
from pathlib import Path

from mt.artifacts import ModelFolder
from mt.config import Config
from mt.decode.loading import load_weights
from mt.errors import ConfigError
from mt.model.transformer import Transformer

logger = logging.getLogger(__name__)


def initialize(model: Transformer, config: Config, is_new: bool = True) -> None:
    """Give the model of a new run the weights of `train.init_from`, and freeze what `train.freeze`
    names.

    Raises `ConfigError`, `CheckpointError`.
    """
    if is_new and config.train.init_from is not None:
        folder = ModelFolder(Path(config.train.init_from))
        folder.verify()
        load_weights(model, folder.weights(), folder.weights_path)
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
