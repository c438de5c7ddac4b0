"""Every option of `mt`, typed, with its unit, its default and where the default comes from. Imports
no torch.

The file format, overrides, presets and error messages are `load.py`'s; these modules only say what
is allowed.
"""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.data import BatchingConfig, DataConfig, TokenizerConfig
from mt.config.schema.decode import DecodeConfig
from mt.config.schema.model import ModelConfig
from mt.config.schema.section import AUTO, Section, option, section
from mt.config.schema.train import OptimConfig, TrainConfig, ValidConfig

FORMAT = 2  # of these settings; `load.DEFAULTS_BEFORE` has the defaults of older ones
HEADER = "# Written by mt: every setting of this run.\n"  # of config.yaml in a run folder


class Config(Section):
    """A whole run. A YAML file holds only what differs from these defaults."""

    format: int = option(
        FORMAT,
        "Version of these settings, as mt writes it: what a file of an older version leaves out "
        "has the default of its time.",
        ge=1,
        le=FORMAT,
    )
    run_dir: str | None = option(
        None, "Folder of the run (default: runs/<name of the YAML file>).", resume="may_change"
    )
    cache_dir: str = option(
        "~/.cache/mt",
        "Trained tokenizers and tokenized corpora, shared by all runs.",
        resume="may_change",
    )
    seed: int = option(1, "Of initial weights, order and dropout.", ge=0, lt=2**31)
    device: str = option(
        "auto",
        "auto: the GPU where there is one.",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        resume="may_change",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Of matrix products; auto: as the run began, else bf16 if the hardware has it; fp16 is "
        "for GPUs without it. Weights and optimizer stay in fp32.",
        resume="may_change",
    )
    threads: int | None = option(
        None,
        "CPU threads of a machine, shared by its ranks (default: as many as the run began with, "
        "else OMP_NUM_THREADS or one per core).",
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
                "model.tie_embeddings: `all` needs a joint vocabulary; use `decoder`, or tokenizer.joint, "
                "or one model as tokenizer.src_model and tokenizer.tgt_model"
            )
        if self.batching.max_tokens == AUTO:
            if self.train.batch_tokens is None:
                raise ValueError(
                    "batching.max_tokens: auto needs train.batch_tokens, so that an update is the same size on every machine"
                )
        elif self.data.filters.max_len > self.batching.max_tokens:
            raise ValueError(
                f"batching.max_tokens: {self.batching.max_tokens} is below "
                f"data.filters.max_len {self.data.filters.max_len}: one sentence may not fit a batch"
            )
        return self
