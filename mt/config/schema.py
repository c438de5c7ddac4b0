"""Every option of `mt`, typed, with its unit, its default and where the default comes from. Imports no torch.

The file format, overrides, presets and error messages are `load.py`'s; this module only says what is allowed.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

AUTO = "auto"
FORMAT = 2  # of these settings; `load.DEFAULTS_BEFORE` has the defaults of older ones
LONGEST_SRC = (
    512  # subwords of a source that is translated whole, if it is not known what training saw
)
HEADER = "# Written by mt: every setting of this run.\n"  # of config.yaml in a run folder
Normalization = Literal["none", "nfc", "nfkc", "nmt_nfkc"]


def _unless_auto(value: Any, validate: Any) -> Any:
    return value if value == AUTO else validate(value)


# A number, or the word until `mt.train` has found the number.
IntOrAuto = Annotated[
    int, Field(ge=1), WrapValidator(_unless_auto), PlainSerializer(lambda value: value),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}]}),
]  # fmt: skip


class Section(BaseModel):
    """A part of the configuration: unknown keys and values of another type are mistakes; nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class CorpusConfig(Section):
    """One parallel corpus: two text files (`src`, `tgt`), or a `dataset` for `datasets.load_dataset`."""

    name: str | None = Field(
        default=None, description="Name in tables and reports (default: the file or dataset name)."
    )
    src: str | None = Field(
        default=None,
        description="Source text, one sentence per line. Relative to the working directory.",
    )
    tgt: str | None = Field(
        default=None, description="Target text; line N translates line N of `src`."
    )
    dataset: str | None = Field(
        default=None, description="Hub name or local folder, as `datasets.load_dataset` takes it."
    )
    subset: str | None = Field(default=None, description="Configuration name of the dataset.")
    split: str = Field(default="train", description="Split of the dataset.")
    src_column: str | None = Field(
        default=None,
        description="Column with the source text; `translation.de` reaches into a column of dictionaries.",
    )
    tgt_column: str | None = Field(default=None, description="Column with the target text.")

    @model_validator(mode="after")
    def _one_kind(self) -> "CorpusConfig":
        if self.dataset is None and (self.src is None or self.tgt is None):
            raise ValueError(
                "a corpus needs `src` and `tgt` (two text files) or `dataset`, `src_column` and `tgt_column`"
            )
        if self.dataset is not None and (self.src is not None or self.tgt is not None):
            raise ValueError(
                "a corpus is either text files (`src`, `tgt`) or a `dataset`, not both"
            )
        if self.dataset is not None and (self.src_column is None or self.tgt_column is None):
            raise ValueError("a `dataset` needs `src_column` and `tgt_column`")
        return self

    @property
    def label(self) -> str:
        """What messages and tables call this corpus."""
        if self.name is not None:
            return self.name
        return f"{self.dataset}:{self.split}" if self.dataset is not None else f"{self.src}"


class FilterConfig(Section):
    """Training pairs left out, each kind counted and shown. Validation and test text is never filtered."""

    max_bytes: int = Field(
        default=16_384, ge=1, description="Drop a pair with a side of more bytes than this (UTF-8)."
    )
    max_len: int = Field(
        default=256,
        ge=1,
        description="Drop a pair with a side of more subwords than this, end of sentence included.",
    )
    max_ratio: float | None = Field(
        default=None,
        ge=1,
        description="Drop a pair whose longer side has more than this many times the subwords of the other (1.5 in "
        "fairseq's IWSLT14 recipe; null: keep all).",
    )


class DataConfig(Section):
    """Where the text is and what happens to text that is not as it should be."""

    src_lang: str | None = Field(
        default=None, description="Source language code; carried into the model folder."
    )
    tgt_lang: str | None = Field(default=None, description="Target language code.")
    train: list[CorpusConfig] = Field(
        default_factory=list, description="Training corpora, one after the other."
    )
    valid: list[CorpusConfig] = Field(
        default_factory=list, description="Validation corpora, scored together."
    )
    test: list[CorpusConfig] = Field(
        default_factory=list, description="Test sets of `mt evaluate`, scored one by one."
    )
    on_invalid_utf8: Literal["error", "replace", "skip"] = Field(
        default="error",
        description="A line that is not UTF-8: stop, put U+FFFD in its place, or skip the pair; counted.",
    )
    on_one_sided_empty: Literal["error", "skip"] = Field(
        default="error",
        description="A training line empty on one side only: stop, or skip the pair; counted. Pairs empty on both "
        "sides are always skipped and counted.",
    )
    filters: FilterConfig = Field(default_factory=FilterConfig)


class TokenizerConfig(Section):
    """SentencePiece, trained in the run unless `src_model` and `tgt_model` name trained ones."""

    model_type: Literal["unigram", "bpe"] = Field(
        default="unigram", description="Subword algorithm (Kudo 2018; Sennrich et al. 2016)."
    )
    vocab_size: int = Field(
        default=8000,
        ge=8,
        description="Pieces, special ones included; per side where `joint` is false.",
    )
    joint: bool = Field(default=True, description="One model for both languages.")
    src_model: str | None = Field(
        default=None, description="A trained SentencePiece model for the source."
    )
    tgt_model: str | None = Field(
        default=None,
        description="One for the target; the same file as `src_model` makes the vocabulary joint.",
    )
    character_coverage: float = Field(
        default=1.0,
        gt=0.9,
        le=1.0,
        description="Share of characters that get pieces of their own; 0.9995 for Chinese or Japanese "
        "(SentencePiece's advice).",
    )
    byte_fallback: bool = Field(
        default=True,
        description="Spell characters without a piece in bytes, so that nothing is unknown.",
    )
    src_normalization: Normalization = Field(
        default="nfc",
        description="What is done to the characters of source text: `none`; `nfc`: one spelling for each composed character, and a plain "
        "space for white space of any kind; `nfkc`: also full-width and superscript characters as plain ones; `nmt_nfkc` (SentencePiece's "
        "default): also a space for no-break spaces and joiners.",
    )
    tgt_normalization: Normalization = Field(
        default="none",
        description="The same for target text. All but `none` change what the model learns to write.",
    )
    user_defined_symbols: list[str] = Field(
        default=[],
        description="Texts that are always one piece each, such as placeholders and tags.",
    )
    max_lossy_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Stop if more than this share of the target lines does not come back from the tokenizer as it was, runs of spaces "
        "apart.",
    )
    max_line_bytes: int = Field(
        default=4192,
        ge=16,
        description="Lines of more bytes are left out of the tokenizer's training, and counted (SentencePiece's own "
        "default).",
    )
    max_lines: int = Field(
        default=2_000_000,
        ge=1,
        description="Lines a side that the tokenizer is trained on, spread evenly over the corpora.",
    )
    num_threads: int = Field(
        default=4,
        ge=1,
        description="Threads of SentencePiece's trainer. Part of the result: another number gives another model.",
    )

    @model_validator(mode="after")
    def _both_models(self) -> "TokenizerConfig":
        if (self.src_model is None) != (self.tgt_model is None):
            raise ValueError(
                "`src_model` and `tgt_model` go together (the same file twice for a joint vocabulary)"
            )
        return self

    @property
    def shares_vocabulary(self) -> bool:
        """Whether both sides use the same ids; of trained models that is known when they are opened (`mt.data.prepare`)."""
        return self.src_model is not None or self.joint


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017). Defaults are the paper's base model."""

    preset: Literal["tiny", "small", "base", "big"] | None = Field(
        default=None, description="Sizes to start from; keys set beside it win."
    )
    d_model: int = Field(default=512, ge=2, description="Width of embeddings and layers.")
    d_ff: int = Field(default=2048, ge=1, description="Inner width of the feed-forward blocks.")
    num_heads: int = Field(default=8, ge=1, description="Attention heads; divides d_model.")
    encoder_layers: int = Field(default=6, ge=1, description="Layers of the encoder.")
    decoder_layers: int = Field(default=6, ge=1, description="Layers of the decoder.")
    norm: Literal["pre", "post"] = Field(
        default="post",
        description="Layer norm before each block (Xiong et al. 2020) or after the sum (paper).",
    )
    activation: Literal["relu", "gelu", "silu"] = Field(
        default="relu", description="Of the feed-forward blocks."
    )
    dropout: float = Field(
        default=0.1, ge=0, lt=1, description="On the output of each block, before the residual sum."
    )
    attention_dropout: float = Field(default=0.0, ge=0, lt=1, description="On attention weights.")
    activation_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="After the activation of the feed-forward blocks."
    )
    embedding_dropout: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="On the sum of embeddings and positions (default: as `dropout`, as in the paper).",
    )
    tie_embeddings: Literal["all", "decoder", "none"] = Field(
        default="all",
        description="Share source, target and output matrices (Press and Wolf 2017), target and output only, or none. "
        "`all` needs a joint vocabulary.",
    )
    output_bias: bool = Field(
        default=False, description="A bias for each output, as Marian's own models have."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide d_model {self.d_model}")
        if self.d_model % 2:
            raise ValueError(
                f"d_model: {self.d_model} is odd; sinusoidal positions need an even width"
            )
        return self


class BatchingConfig(Section):
    """How pairs become micro-batches: token buckets of similar length."""

    max_tokens: IntOrAuto = Field(
        default=4096,
        description="Rows x longest side (end of sentence included) of a micro-batch; padding counts. auto: as many as memory "
        "holds, up to `train.batch_tokens` (which it needs), found by trying, and kept when the run goes on.",
    )
    block_size: int = Field(
        default=131_072,
        ge=1,
        description="Pairs shuffled and sorted by length together; bounds memory and the cost of a resume.",
    )
    prefetch: int = Field(
        default=4, ge=1, description="Updates prepared ahead by a background thread."
    )


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(
        default=5e-4, gt=0, description="Peak learning rate (5e-4: fairseq's IWSLT14 recipe)."
    )
    betas: list[float] = Field(
        default=[0.9, 0.98],
        min_length=2,
        max_length=2,
        description="Adam's decay rates (Vaswani et al. 2017).",
    )
    eps: float = Field(default=1e-9, gt=0, description="Adam's epsilon (Vaswani et al. 2017).")
    weight_decay: float = Field(
        default=0.0, ge=0, description="Decoupled weight decay, on matrices only."
    )
    schedule: Literal["inverse_sqrt", "constant"] = Field(
        default="inverse_sqrt",
        description="After the warm-up: lr x sqrt(warmup_steps / step), or lr.",
    )
    warmup_steps: int = Field(
        default=4000,
        ge=0,
        description="Updates over which the learning rate rises linearly from 0 to `lr`.",
    )
    clip_norm: float = Field(
        default=1.0, ge=0, description="Largest norm of all gradients together; 0 clips nothing."
    )

    @model_validator(mode="after")
    def _betas_in_range(self) -> "OptimConfig":
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: {self.betas} are not in [0, 1)")
        return self


class TrainConfig(Section):
    """The training loop: how long, how large an update, how often what."""

    init_from: str | None = Field(
        default=None,
        description="A model to begin with: its tokenizer, sizes and weights are taken over (fine-tuning).",
    )
    freeze: list[str] = Field(
        default=[], description="Parameters that stay as they are, by pattern, such as `encoder.*`."
    )
    max_steps: int | None = Field(
        default=100_000, ge=1, description="Stop after this many updates."
    )
    max_epochs: int | None = Field(
        default=None, ge=1, description="Stop after this many passes over the data."
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Stop after this many validations without a better `metric`.",
    )
    metric: Literal["bleu", "chrf", "loss"] = Field(
        default="bleu",
        description="What makes a checkpoint the best, and what patience watches.",
    )
    label_smoothing: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Mass spread over the vocabulary (Szegedy et al. 2016; 0.1 in Vaswani et al. 2017).",
    )
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights, which validation, checkpoints and translation then "
        "use; 0 is off. The first updates use min(decay, (1 + step) / (10 + step)).",
    )
    grad_accum_steps: int = Field(
        default=1, ge=1, description="Micro-batches an update, over all ranks."
    )
    batch_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Maximum number of target tokens per update, over all ranks; sets the number of micro-batches by itself. A single "
        "sentence may have more.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep only the inputs of each layer and compute the rest again in the backward pass: less memory, a third more work.",
    )
    compile: bool = Field(
        default=True,
        description="Compile the layers with torch.compile on a GPU. A CPU is faster without; it stays off there.",
    )
    deterministic: bool = Field(
        default=False,
        description="Let a GPU give the same bits every time, which is slower.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="Of several processes each holds the whole model (ddp), or a share, for models too large for one GPU (fsdp).",
    )
    timeout: float = Field(
        default=300.0,
        gt=0,
        description="Seconds without an answer after which a rank counts as lost and the run ends.",
    )
    max_bad_updates: int = Field(
        default=0,
        ge=0,
        description="Updates in all whose loss or gradients are not finite that are left out, each kept in crash/, before the run stops.",
    )
    divergence_factor: float | None = Field(
        default=1.3,
        gt=1,
        description="Stop where the loss of `divergence_window` updates is on average this many times its best (counted as 1 or more); "
        "null: never.",
    )
    divergence_window: int = Field(default=200, ge=1, description="See `divergence_factor`.")
    log_every: int = Field(default=50, ge=1, description="Updates between log lines.")
    valid_every: int = Field(default=1000, ge=1, description="Updates between validations.")
    save_every: int = Field(
        default=1000, ge=1, description="Updates between checkpoints. A new best is saved at once."
    )
    keep_last: int = Field(default=2, ge=1, description="Newest checkpoints kept.")
    keep_best: int = Field(default=1, ge=0, description="Best checkpoints kept besides.")

    @model_validator(mode="after")
    def _one_update_size(self) -> "TrainConfig":
        if self.batch_tokens is not None and self.grad_accum_steps != 1:
            raise ValueError(
                "`batch_tokens` derives the number of micro-batches; leave `grad_accum_steps` out"
            )
        if self.max_steps is None and self.max_epochs is None and self.patience is None:
            raise ValueError(
                "nothing would end this run: set `max_steps`, `max_epochs` or `patience`"
            )
        return self


class ValidConfig(Section):
    """Validation in training, by the same search and scorer as `mt translate` and `mt evaluate`."""

    max_sentences: int = Field(
        default=500,
        ge=1,
        description="Sentences translated for BLEU and chrF, spread evenly over all corpora; the loss is over all.",
    )
    beam_size: int = Field(
        default=1, ge=1, description="Beam of these translations; 1 is greedy search."
    )
    samples: int = Field(default=3, ge=0, description="Translations shown in the log.")


class DecodeConfig(Section):
    """The search and its limits; the defaults of `mt translate` and `mt evaluate`, carried in the model folder."""

    beam_size: int = Field(
        default=5, ge=1, le=1000, description="Hypotheses kept a sentence; 1 is greedy search."
    )
    nbest: int = Field(default=1, ge=1, description="Translations a line; at most `beam_size`.")
    length_penalty: float = Field(
        default=1.0,
        ge=0,
        description="a in score = log-probability / length**a, end of sentence counted (as in fairseq, Marian and "
        "CTranslate2).",
    )
    max_len_a: float = Field(
        default=1.2,
        ge=0,
        description="A translation has at most max_len_a x source subwords + max_len_b subwords.",
    )
    max_len_b: int = Field(default=10, ge=1, description="See `max_len_a`.")
    batch_size: int = Field(default=64, ge=1, description="Sentences a batch, at most.")
    max_tokens: int = Field(
        default=8192, ge=1, description="Source tokens a batch, padding counted, at most."
    )
    max_src_len: IntOrAuto = Field(
        default=AUTO,  # type: ignore[assignment]
        description="Longer sources (in subwords) are translated in parts, which are joined and counted. auto: what all but one in "
        "10,000 training lines have at most; 512 if that is not known.",
    )
    max_sentences: IntOrAuto | None = Field(
        default=AUTO,  # type: ignore[assignment]
        description="Lines of more sentences are translated in parts. auto: what 99 of 100 training lines have at most; null, and if that "
        "is not known: any number.",
    )

    @property
    def longest_src(self) -> int:
        """`max_src_len` as a number."""
        return LONGEST_SRC if self.max_src_len == AUTO else int(self.max_src_len)

    @model_validator(mode="after")
    def _nbest_fits(self) -> "DecodeConfig":
        if self.nbest > self.beam_size:
            raise ValueError(f"nbest: {self.nbest} is more than beam_size {self.beam_size}")
        return self


class Config(Section):
    """A whole run. A YAML file holds only what differs from these defaults."""

    format: int = Field(
        default=FORMAT,
        ge=1,
        le=FORMAT,
        description="Version of these settings, as mt writes it: what a file of an older version leaves out has the default of its time.",
    )
    run_dir: str | None = Field(
        default=None, description="Folder of the run (default: runs/<name of the YAML file>)."
    )
    cache_dir: str = Field(
        default="~/.cache/mt",
        description="Trained tokenizers and tokenized corpora, shared by all runs.",
    )
    seed: int = Field(
        default=1, ge=0, lt=2**31, description="Of initial weights, order and dropout."
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto: the GPU where there is one.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="Of matrix products; auto: as the run began, else bf16 if the hardware has it; "
        "fp16 is for GPUs without it. Weights and optimizer stay in fp32.",
    )
    threads: int | None = Field(default=None, ge=1, description=
        "CPU threads of a machine, shared by its ranks (default: as many as the run began with, else OMP_NUM_THREADS or one per core).",
    )  # fmt: skip
    data: DataConfig = Field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    batching: BatchingConfig = Field(default_factory=BatchingConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    valid: ValidConfig = Field(default_factory=ValidConfig)
    decode: DecodeConfig = Field(default_factory=DecodeConfig)

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
