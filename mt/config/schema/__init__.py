"""The configuration schema: every option with its type, unit, default and limits.

These modules only define what is allowed, and do not import torch. `mt.config.load` reads files,
overrides and presets, and writes the error messages.
"""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.data import BatchingConfig, DataConfig, TokenizerConfig
from mt.config.schema.decode import DecodeConfig
from mt.config.schema.model import ModelConfig
from mt.config.schema.section import AUTO, Section, option, section
from mt.config.schema.train import OptimConfig, TrainConfig, ValidConfig

FORMAT = 2  # version of the settings; for the defaults of older ones, see `load.DEFAULTS_BEFORE`
HEADER = "# Written by mt: every setting of this run.\n"  # first line of a run folder's config.yaml


class Config(Section):
    """A complete configuration. A YAML file needs only the keys that differ from the defaults."""

    format: int = option(
        FORMAT,
        "Version of the settings, written by mt. Keys missing from a file of an older version "
        "take the defaults of that version.",
        ge=1,
        le=FORMAT,
    )
    run_dir: str | None = option(
        None, "Folder of the run (default: runs/<name of the YAML file>).", resume="may_change"
    )
    cache_dir: str = option(
        "~/.cache/mt",
        "Folder for trained tokenizers and tokenized corpora, shared by all runs.",
        resume="may_change",
    )
    seed: int = option(
        1, "Random seed of the initial weights, the training order and dropout.", ge=0, lt=2**31
    )
    device: str = option(
        "auto",
        "Where to compute: cpu, cuda or cuda:N; auto uses a GPU if there is one.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        resume="may_change",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Number format of matrix products; weights and optimizer state stay in fp32. fp16 is for "
        "GPUs without bf16. auto: bf16 if the hardware supports it, otherwise fp32; a resumed run "
        "keeps its precision.",
        resume="may_change",
    )
    threads: int | None = option(
        None,
        "CPU threads per machine, shared by its ranks (default: OMP_NUM_THREADS or one per core; "
        "a resumed run keeps its number).",
        ge=1,
        resume="may_change",
    )
    data: DataConfig = section(DataConfig, resume="same_data")
    tokenizer: TokenizerConfig = section(TokenizerConfig)
    model: ModelConfig = section(ModelConfig)
    batching: BatchingConfig = section(BatchingConfig)
    optim: OptimConfig = section(OptimConfig, resume="may_change")
    train: TrainConfig = section(TrainConfig)
    valid: ValidConfig = section(ValidConfig, resume="may_change")
    decode: DecodeConfig = section(DecodeConfig, resume="may_change")

    @model_validator(mode="after")
    def _sections_fit(self) -> "Config":
        if self.model.tie_embeddings == "all" and not self.tokenizer.shares_vocabulary:
            raise ValueError(
                "model.tie_embeddings: `all` needs a joint vocabulary; use `decoder`, set "
                "tokenizer.joint, or use the same file for tokenizer.src_model and tgt_model"
            )
        max_tokens, max_len = self.batching.max_tokens, self.data.filters.max_len
        if max_tokens == AUTO:
            if self.train.batch_tokens is None:
                raise ValueError(
                    "batching.max_tokens: auto needs train.batch_tokens, "
                    "so that an update has the same size on every machine"
                )
        elif max_len > max_tokens:
            raise ValueError(
                f"batching.max_tokens: {max_tokens} is below data.filters.max_len {max_len}: "
                "the longest sentences would not fit in a micro-batch"
            )
        return self
