"""Options of the search, which a model folder carries with it."""

from pydantic import model_validator

from mt.config.schema.section import AUTO, IntOrAuto, Section, option

LONGEST_SRC = 512  # subwords of a source that is translated whole, if what training saw is unknown


class DecodeConfig(Section):
    """The search and its limits; the defaults of `mt translate` and `mt evaluate`, carried in the
    model folder.
    """

    beam_size: int = option(5, "Hypotheses kept a sentence; 1 is greedy search.", ge=1, le=1000)
    nbest: int = option(1, "Translations a line; at most `beam_size`.", ge=1)
    length_penalty: float = option(
        1.0,
        "a in score = log-probability / length**a, end of sentence counted (as in fairseq, Marian"
        " and CTranslate2).",
        ge=0,
    )
    max_len_a: float = option(
        1.2, "A translation has at most max_len_a x source subwords + max_len_b subwords.", ge=0
    )
    max_len_b: int = option(10, "See `max_len_a`.", ge=1)
    batch_size: int = option(64, "Sentences a batch, at most.", ge=1)
    max_tokens: int = option(8192, "Source tokens a batch, padding counted, at most.", ge=1)
    max_src_len: IntOrAuto = option(
        AUTO,
        "Longer sources (in subwords) are translated in parts, which are joined and counted. "
        "auto: what all but one in 10,000 training lines have at most; 512 if that is not known.",
    )
    max_sentences: IntOrAuto | None = option(
        AUTO,
        "Lines of more sentences are translated in parts. auto: what 99 of 100 training lines "
        "have at most; null, and if that is not known: any number.",
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
