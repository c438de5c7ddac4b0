"""Options of the text: corpora, filters, the tokenizer, batches."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import IntOrAuto, Section, option, section

Normalization = Literal["none", "nfc", "nfkc", "nmt_nfkc"]


class CorpusConfig(Section):
    """One parallel corpus: two text files (`src`, `tgt`), or a `dataset` for
    `datasets.load_dataset`.
    """

    name: str | None = option(
        None, "Name in tables and reports (default: the file or dataset name)."
    )
    src: str | None = option(
        None, "Source text, one sentence per line. Relative to the working directory."
    )
    tgt: str | None = option(None, "Target text; line N translates line N of `src`.")
    dataset: str | None = option(
        None, "Hub name or local folder, as `datasets.load_dataset` takes it."
    )
    subset: str | None = option(None, "Configuration name of the dataset.")
    split: str = option("train", "Split of the dataset.")
    src_column: str | None = option(
        None, "Column with the source text; `translation.de` reaches into a column of dictionaries."
    )
    tgt_column: str | None = option(None, "Column with the target text.")

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
    """Training pairs left out, each kind counted and shown. Validation and test text is never
    filtered.
    """

    max_bytes: int = option(
        16_384, "Drop a pair with a side of more bytes than this (UTF-8).", ge=1
    )
    max_len: int = option(
        256, "Drop a pair with a side of more subwords than this, end of sentence included.", ge=1
    )
    max_ratio: float | None = option(
        None,
        "Drop a pair whose longer side has more than this many times the subwords of the other "
        "(1.5 in fairseq's IWSLT14 recipe; null: keep all).",
        ge=1,
    )


class DataConfig(Section):
    """Where the text is and what happens to text that is not as it should be."""

    src_lang: str | None = option(None, "Source language code; carried into the model folder.")
    tgt_lang: str | None = option(None, "Target language code.")
    train: list[CorpusConfig] = option([], "Training corpora, one after the other.")
    valid: list[CorpusConfig] = option([], "Validation corpora, scored together.")
    test: list[CorpusConfig] = option([], "Test sets of `mt evaluate`, scored one by one.")
    on_invalid_utf8: Literal["error", "replace", "skip"] = option(
        "error",
        "A line that is not UTF-8: stop, put U+FFFD in its place, or skip the pair; counted.",
    )
    on_one_sided_empty: Literal["error", "skip"] = option(
        "error",
        "A training line empty on one side only: stop, or skip the pair; counted. Pairs empty on "
        "both sides are always skipped and counted.",
    )
    filters: FilterConfig = section(FilterConfig, resume="fixed")


class TokenizerConfig(Section):
    """SentencePiece, trained in the run unless `src_model` and `tgt_model` name trained ones."""

    model_type: Literal["unigram", "bpe"] = option(
        "unigram", "Subword algorithm (Kudo 2018; Sennrich et al. 2016)."
    )
    vocab_size: int = option(
        8000, "Pieces, special ones included; per side where `joint` is false.", ge=8
    )
    joint: bool = option(True, "One model for both languages.")
    src_model: str | None = option(None, "A trained SentencePiece model for the source.")
    tgt_model: str | None = option(
        None, "One for the target; the same file as `src_model` makes the vocabulary joint."
    )
    character_coverage: float = option(
        1.0,
        "Share of characters that get pieces of their own; 0.9995 for Chinese or Japanese "
        "(SentencePiece's advice).",
        gt=0.9,
        le=1.0,
    )
    byte_fallback: bool = option(
        True, "Spell characters without a piece in bytes, so that nothing is unknown."
    )
    src_normalization: Normalization = option(
        "nfc",
        "What is done to the characters of source text: `none`; `nfc`: one spelling for each "
        "composed character, and a plain space for white space of any kind; `nfkc`: also "
        "full-width and superscript characters as plain ones; `nmt_nfkc` (SentencePiece's "
        "default): also a space for no-break spaces and joiners.",
    )
    tgt_normalization: Normalization = option(
        "none", "The same for target text. All but `none` change what the model learns to write."
    )
    user_defined_symbols: list[str] = option(
        [], "Texts that are always one piece each, such as placeholders and tags."
    )
    max_lossy_share: float = option(
        0.1,
        "Stop if more than this share of the target lines does not come back from the tokenizer "
        "as it was, runs of spaces apart.",
        ge=0,
        le=1,
        resume="may_change",
    )
    max_line_bytes: int = option(
        4192,
        "Lines of more bytes are left out of the tokenizer's training, and counted "
        "(SentencePiece's own default).",
        ge=16,
    )
    max_lines: int = option(
        2_000_000,
        "Lines a side that the tokenizer is trained on, spread evenly over the corpora.",
        ge=1,
    )
    num_threads: int = option(
        4,
        "Threads of SentencePiece's trainer. Part of the result: another number gives another "
        "model.",
        ge=1,
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
        """Whether both sides use the same ids; of trained models that is known when they are opened
        (`mt.data.prepare`).
        """
        return self.src_model is not None or self.joint


class BatchingConfig(Section):
    """How pairs become micro-batches: token buckets of similar length."""

    max_tokens: IntOrAuto = option(
        4096,
        "Rows x longest side (end of sentence included) of a micro-batch; padding counts. auto: "
        "as many as memory holds, up to `train.batch_tokens` (which it needs), found by trying, "
        "and kept when the run goes on.",
    )
    block_size: int = option(
        131_072,
        "Pairs shuffled and sorted by length together; bounds memory and the cost of a resume.",
        ge=1,
    )
    prefetch: int = option(
        4, "Updates prepared ahead by a background thread.", ge=1, resume="may_change"
    )
