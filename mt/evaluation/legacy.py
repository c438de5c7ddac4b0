"""BLEU as papers computed it before sacreBLEU existed.

Hypotheses and references are punctuation-normalized, lowercased and tokenized with Moses. The first
papers on Multi30k report this score. It cannot be compared with a sacreBLEU score, because another
tokenization changes BLEU by more than most papers improve it (Post 2018). So this metric has its
own name.
"""

from typing import Any

from sacrebleu.metrics.bleu import BLEU

from mt.config.languages import Language
from mt.errors import ConfigError


class MosesTokens:
    """Tokenizes like Moses' normalize-punctuation.perl, lowercase.perl and tokenizer.perl.

    This uses sacremoses. The class has the methods that sacreBLEU expects of a tokenizer.
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
        """Return the name of this tokenization for sacreBLEU's score signature."""
        return f"moses-{self.lang}-normalized"


def legacy_bleu(language: Language) -> Any:
    """Build the metric. Like multi-bleu.perl, it does not smooth.

    Raises `ConfigError` if sacremoses is missing, no language is given, or the language is one that
    the Moses tokenizer cannot split into words.
    """
    lang = language.code
    if not lang:
        raise ConfigError("legacy BLEU needs the target language; set data.tgt_lang or --lang")
    if lang == "ko" or language.is_unspaced:
        raise ConfigError(
            f"legacy BLEU is not possible for {lang}, because the Moses tokenizer splits at spaces"
        )
    try:
        tokens = MosesTokens(lang)
    except ImportError as error:
        raise ConfigError("legacy BLEU needs sacremoses: pip install 'mt-forge[legacy]'") from error
    metric = BLEU(lowercase=True, tokenize="none", smooth_method="none", force=True)
    metric.tokenizer = tokens
    metric.tokenizer_signature = tokens.signature()
    return metric
