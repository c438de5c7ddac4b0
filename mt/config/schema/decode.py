"""Options of the search, which a model folder stores with the model."""

from pydantic import model_validator

from mt.config.schema.section import AUTO, IntOrAuto, Section, option

# Longest source, in subwords, to translate in one piece if the training lengths are unknown.
DEFAULT_MAX_SRC_LEN = 512


class DecodeConfig(Section):
    """Beam search and its limits: the defaults of `mt translate` and `mt evaluate`, stored in the
    model folder.
    """

    beam_size: int = option(
        5, "Number of hypotheses kept per sentence; 1 is greedy search.", ge=1, le=1000
    )
    nbest: int = option(1, "Number of translations per line; at most `beam_size`.", ge=1)
    length_penalty: float = option(
        1.0,
        "Exponent a of the score, which is log-probability / length**a. The length includes the "
        "end-of-sentence token, as in fairseq, Marian and CTranslate2. Larger values favor longer "
        "translations.",
        ge=0,
    )
    max_len_a: float = option(
        1.2,
        "Maximum length of a translation in subwords: max_len_a x source subwords + max_len_b.",
        ge=0,
    )
    max_len_b: int = option(
        10, "Subwords added to the maximum length of a translation; see `max_len_a`.", ge=1
    )
    batch_size: int = option(64, "Maximum number of sentences per batch.", ge=1)
    max_tokens: int = option(
        8192, "Maximum number of source tokens per batch, including padding.", ge=1
    )
    max_src_len: IntOrAuto = option(
        AUTO,
        "Maximum number of source subwords to translate in one piece. Longer lines are split, and "
        "the translations of their parts are joined. auto: enough for all but 1 in 10,000 "
        "training lines, or 512 if their lengths are unknown.",
    )
    max_sentences: IntOrAuto | None = option(
        AUTO,
        "Maximum number of sentences to translate in one piece. Lines with more are split, and "
        "the translations of their parts are joined. auto: enough for 99 of 100 training lines, "
        "or no maximum if that is unknown. null: no maximum.",
    )

    @property
    def longest_src(self) -> int:
        """`max_src_len` as a number, which is `DEFAULT_MAX_SRC_LEN` if it is still `auto`."""
        return DEFAULT_MAX_SRC_LEN if self.max_src_len == AUTO else int(self.max_src_len)

    @model_validator(mode="after")
    def _nbest_fits(self) -> "DecodeConfig":
        if self.nbest > self.beam_size:
            raise ValueError(f"nbest: {self.nbest} is larger than beam_size {self.beam_size}")
        return self
