"""BLEU as papers computed it before sacreBLEU: punctuation normalised, lower case, Moses tokens, on
both sides.

The numbers of Multi30k's first papers are of this kind. They are no sacreBLEU scores: another
tokenization moves BLEU by more than most papers' improvements (Post 2018), so the name always says
which is meant.
"""

from typing import Any

from sacrebleu.metrics.bleu import BLEU

from mt.config.languages import Language
from mt.errors import ConfigError


class MosesTokens:
    """Text to the tokens of Moses' normalize-punctuation.perl, lower case, and tokenizer.perl, by
    sacremoses.
    """

    def __init__(self, lang: str) -> None:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer

        self.lang = lang
        self.normalizer, self.tokenizer = MosesPunctNormalizer(lang), MosesTokenizer(lang)

    def __call__(self, line: str) -> str:
        return str(
            self.tokenizer.tokenize(self.normalizer.normalize(line).lower(), return_str=True)
        )

    def signature(self) -> str:
        """Of the tokenization, as sacreBLEU's tokenizers have one."""
        return f"moses-{self.lang}-normalized"


def legacy_bleu(language: Language) -> Any:
    """The metric, without smoothing, like multi-bleu.perl. Raises `ConfigError` where sacremoses is
    missing or no language is given.
    """
    lang = language.code
    if not lang:
        raise ConfigError("legacy BLEU needs the target's language: data.tgt_lang, or --lang")
    if lang == "ko" or language.is_unspaced:
        raise ConfigError(
            f"legacy BLEU does not apply to {lang}: Moses' tokenizer splits at spaces"
        )
    try:
        tokens = MosesTokens(lang)
    except ImportError as error:
        raise ConfigError("legacy BLEU needs sacremoses: pip install 'mt-forge[legacy]'") from error
    metric = BLEU(lowercase=True, tokenize="none", smooth_method="none", force=True)
    metric.tokenizer = tokens
    metric.tokenizer_signature = tokens.signature()
    return metric
