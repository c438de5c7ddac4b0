"""The configuration of a run: the schema, reading and writing. Does not import torch."""

from mt.config.load import (
    config_from_text,
    default_run_dir,
    expand_path,
    load_config,
    with_defaults_of,
)
from mt.config.presets import PRESETS
from mt.config.resolved import ResolvedRun
from mt.config.schema import HEADER, Config
from mt.config.schema.data import (
    BatchingConfig,
    CorpusConfig,
    DataConfig,
    FilterConfig,
    Normalization,
    TokenizerConfig,
)
from mt.config.schema.decode import DEFAULT_MAX_SRC_LEN, DecodeConfig
from mt.config.schema.model import ModelConfig
from mt.config.schema.section import AUTO, resume_policy
from mt.config.schema.train import OptimConfig, TrainConfig
from mt.config.write import flatten, json_schema, to_yaml
