"""Options of the corpora, the filters, the tokenizer and batching."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import IntOrAuto, Section, option, section

Normalization = Literal["none", "nfc", "nfkc", "nmt_nfkc"]


class CorpusConfig(Section):
    """One parallel corpus: two text files (`src`, `tgt`), or a `dataset` for
    `datasets.load_dataset`.
    """

    name: str | None = option(
        None, "Name in tables and reports (default: the name of the file or dataset)."
    )
    src: str | None = option(
        None, "Path of the source text, one sentence per line; relative to the working directory."
    )
    tgt: str | None = option(
        None, "Path of the target text. Line N is the translation of line N of `src`."
    )
    dataset: str | None = option(
        None, "Name on the Hugging Face Hub, or a local folder, for `datasets.load_dataset`."
    )
    subset: str | None = option(None, "Name of the dataset's configuration, if it has several.")
    split: str = option("train", "Split of the dataset.")
    src_column: str | None = option(
        None,
        "Column with the source text. `translation.de` is the entry `de` of the dictionaries in "
        "the column `translation`.",
    )
    tgt_column: str | None = option(None, "Column with the target text; see `src_column`.")

    @model_validator(mode="after")
    def _one_kind(self) -> "CorpusConfig":
        if self.dataset is None and (self.src is None or self.tgt is None):
            raise ValueError(
                "needs `src` and `tgt` (text files) or `dataset`, `src_column` and `tgt_column`"
            )
        if self.dataset is not None and (self.src is not None or self.tgt is not None):
            raise ValueError(
                "a corpus is either two text files (`src`, `tgt`) or a `dataset`, not both"
            )
        if self.dataset is not None and (self.src_column is None or self.tgt_column is None):
            raise ValueError("a `dataset` needs `src_column` and `tgt_column`")
        return self

    @property
    def label(self) -> str:
        """The name of this corpus in messages and tables."""
        if self.name is not None:
            return self.name
        return f"{self.dataset}:{self.split}" if self.dataset is not None else f"{self.src}"


class FilterConfig(Section):
    """Which training pairs to drop. Each filter reports how many pairs it dropped. Validation and
    test text is never filtered.
    """

    max_bytes: int = option(
        16_384, "Drop a pair if either side has more bytes than this (UTF-8).", ge=1
    )
    max_len: int = option(
        256,
        "Drop a pair if either side has more subwords than this, including the end-of-sentence "
        "token.",
        ge=1,
    )
    max_ratio: float | None = option(
        None,
        "Drop a pair if one side has more than this many times as many subwords as the other (1.5 "
        "in fairseq's IWSLT14 recipe). null: keep all.",
        ge=1,
    )


class DataConfig(Section):
    """The corpora, and what to do with lines that are invalid or empty."""

    src_lang: str | None = option(
        None, "Source language code, such as `de`; stored in the model folder."
    )
    tgt_lang: str | None = option(
        None, "Target language code, such as `en`; stored in the model folder."
    )
    train: list[CorpusConfig] = option([], "Training corpora, used together as one.")
    valid: list[CorpusConfig] = option([], "Validation corpora, scored together.")
    test: list[CorpusConfig] = option([], "Test sets of `mt evaluate`, each scored separately.")
    on_invalid_utf8: Literal["error", "replace", "skip"] = option(
        "error",
        "What to do with a line that is not valid UTF-8. `error`: stop. `replace`: replace the "
        "invalid bytes by U+FFFD. `skip`: drop the pair. Such lines are counted.",
    )
    on_one_sided_empty: Literal["error", "skip"] = option(
        "error",
        "What to do with a training pair if one of its sides is empty. `error`: stop. `skip`: drop "
        "and count it. Pairs with two empty sides are always dropped and counted.",
    )
    filters: FilterConfig = section(FilterConfig, resume="fixed")


class TokenizerConfig(Section):
    """The SentencePiece tokenizer, trained by the run if `src_model` and `tgt_model` are null."""

    model_type: Literal["unigram", "bpe"] = option(
        "unigram", "Subword algorithm: `unigram` (Kudo 2018) or `bpe` (Sennrich et al. 2016)."
    )
    vocab_size: int = option(
        8000,
        "Number of subwords in the vocabulary, including special tokens; per language if `joint` "
        "is false.",
        ge=8,
    )
    joint: bool = option(True, "Whether both languages share one tokenizer and vocabulary.")
    src_model: str | None = option(
        None, "Path of a trained SentencePiece model for the source language."
    )
    tgt_model: str | None = option(
        None,
        "Path of a trained SentencePiece model for the target language. If it is the same as "
        "`src_model`, the vocabulary is joint.",
    )
    character_coverage: float = option(
        1.0,
        "Share of the characters in the training text that the vocabulary covers; SentencePiece "
        "recommends 0.9995 for Chinese and Japanese.",
        gt=0.9,
        le=1.0,
    )
    byte_fallback: bool = option(
        True,
        "Whether to encode characters outside the vocabulary as bytes, so that no text becomes "
        "the unknown token.",
    )
    src_normalization: Normalization = option(
        "nfc",
        "Unicode normalization of the source text. `none`: nothing changes. `nfc`: composed "
        "characters, and any white space becomes a plain space. `nfkc`: also, full-width and "
        "superscript characters become plain ones. `nmt_nfkc` (SentencePiece's default): also, "
        "no-break spaces and joiners become spaces.",
    )
    tgt_normalization: Normalization = option(
        "none",
        "Unicode normalization of the target text; see `src_normalization`. Any value except "
        "`none` changes the text that the model learns to write.",
    )
    user_defined_symbols: list[str] = option(
        [], "Strings that are never split into subwords, such as placeholders and tags."
    )
    max_lossy_share: float = option(
        0.1,
        "Stop if encoding and decoding changes more than this share of the target lines. "
        "Differences in runs of spaces do not count.",
        ge=0,
        le=1,
        resume="may_change",
    )
    max_line_bytes: int = option(
        4192,
        "The tokenizer is not trained on lines with more bytes than this, and their number is "
        "logged (the default is SentencePiece's).",
        ge=16,
    )
    max_lines: int = option(
        2_000_000,
        "Maximum number of lines per language to train the tokenizer on, spread evenly over the "
        "corpora.",
        ge=1,
    )
    num_threads: int = option(
        4,
        "Number of threads that train the tokenizer. A different number gives a different "
        "tokenizer.",
        ge=1,
    )

    @model_validator(mode="after")
    def _both_models(self) -> "TokenizerConfig":
        if (self.src_model is None) != (self.tgt_model is None):
            raise ValueError(
                "set both `src_model` and `tgt_model` (to the same file for a joint vocabulary)"
            )
        return self

    @property
    def shares_vocabulary(self) -> bool:
        """Whether both sides use the same ids, as far as the configuration tells.

        `mt.data.prepare` compares the pieces of `src_model` and `tgt_model` when it opens them.
        """
        return self.src_model is not None or self.joint


class BatchingConfig(Section):
    """How sentence pairs of similar length are grouped into micro-batches."""

    max_tokens: IntOrAuto = option(
        4096,
        "Maximum size of a micro-batch in tokens: number of pairs x longest side, including "
        "end-of-sentence tokens and padding. auto: try out what fits in memory, up to "
        "`train.batch_tokens`, which must be set; a resumed run keeps the result.",
    )
    block_size: int = option(
        131_072,
        "Number of pairs that are shuffled and sorted by length together. Larger blocks need more "
        "memory and make resuming slower.",
        ge=1,
    )
    prefetch: int = option(
        4,
        "Number of updates that a background thread prepares in advance.",
        ge=1,
        resume="may_change",
    )
