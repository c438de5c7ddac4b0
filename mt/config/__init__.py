"""The configuration of a run: the schema, reading it and writing it back. Imports no torch."""

from mt.config.load import (
    config_from_text,
    default_run_dir,
    expanded,
    load_config,
    with_defaults_of,
)
from mt.config.presets import PRESETS
from mt.config.schema import (
    AUTO,
    HEADER,
    LONGEST_SRC,
    BatchingConfig,
    Config,
    CorpusConfig,
    DataConfig,
    DecodeConfig,
    FilterConfig,
    ModelConfig,
    Normalization,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
    ValidConfig,
)
from mt.config.write import flatten, json_schema, to_yaml

__all__ = [
    "AUTO",
    "HEADER",
    "LONGEST_SRC",
    "PRESETS",
    "BatchingConfig",
    "Config",
    "CorpusConfig",
    "DataConfig",
    "DecodeConfig",
    "FilterConfig",
    "ModelConfig",
    "Normalization",
    "OptimConfig",
    "TokenizerConfig",
    "TrainConfig",
    "ValidConfig",
    "config_from_text",
    "default_run_dir",
    "expanded",
    "flatten",
    "json_schema",
    "load_config",
    "to_yaml",
    "with_defaults_of",
]
