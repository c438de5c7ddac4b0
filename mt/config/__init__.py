"""The configuration of a run: the schema, reading it and writing it back. Imports no torch."""

from mt.config.load import config_from_text, default_run_dir, load_config
from mt.config.presets import PRESETS
from mt.config.schema import (
    AUTO,
    BatchingConfig,
    Config,
    CorpusConfig,
    DataConfig,
    DecodeConfig,
    FilterConfig,
    ModelConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
    ValidConfig,
)
from mt.config.write import flatten, json_schema, to_yaml

__all__ = [
    "AUTO",
    "PRESETS",
    "BatchingConfig",
    "Config",
    "CorpusConfig",
    "DataConfig",
    "DecodeConfig",
    "FilterConfig",
    "ModelConfig",
    "OptimConfig",
    "TokenizerConfig",
    "TrainConfig",
    "ValidConfig",
    "config_from_text",
    "default_run_dir",
    "flatten",
    "json_schema",
    "load_config",
    "to_yaml",
]
