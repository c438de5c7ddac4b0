"""Fine-tuning: training that starts from the weights of a model, with some parameters frozen."""

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
    """Load the weights of `train.init_from` into a new run, and apply `train.freeze`.

    Raises `ConfigError` if a pattern matches no parameter or no parameter is left to train, and
    `CheckpointError` if the weights cannot be loaded.
    """
    if is_new and config.train.init_from is not None:
        folder = ModelFolder(Path(config.train.init_from))
        folder.verify()
        load_weights(model, folder.weights(), folder.weights_path)
    parameters = dict(model.named_parameters())
    trainable = [p for p in parameters.values() if p.requires_grad]
    for pattern in config.train.freeze:
        matched = fnmatch.filter(parameters, pattern)
        if not matched:
            raise ConfigError(
                f"train.freeze: {pattern!r} matches no parameter; parameter names "
                f"are, for example, {', '.join(list(parameters)[:3])}"
            )
        for name in matched:
            parameters[name].requires_grad_(False)
    frozen = sum(p.numel() for p in trainable if not p.requires_grad)
    if frozen == sum(p.numel() for p in trainable):
        raise ConfigError("train.freeze matches all parameters, so nothing is left to train")
    if frozen:
        logger.info(f"frozen: {frozen:,} parameters")
