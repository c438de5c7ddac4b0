"""Parse all common kinds of language codes: ISO 639-1, 639-2, 639-3, BCP 47, FLORES, locales.

`de`, `de-AT`, `de_DE.UTF-8`, `deu`, `ger`, `deu_Latn` and `>>deu<<` all mean German.
"""

import re
from dataclasses import dataclass

# Pairs of a language code and the code that replaces it. The first part lists three-letter codes
# (ISO 639-2/T, the same in 639-3) with their two-letter codes (639-1). The second part lists
# bibliographic codes (639-2/B), outdated codes, and codes that are more specific than needed.
_PAIRS = """
aar aa abk ab ave ae afr af aka ak amh am arg an ara ar asm as ava av aym ay aze az bak ba bel be
bul bg bih bh bis bi bam bm ben bn bod bo bre br bos bs cat ca che ce cha ch cos co cre cr ces cs
chu cu chv cv cym cy dan da deu de div dv dzo dz ewe ee ell el eng en epo eo spa es est et eus eu
fas fa ful ff fin fi fij fj fao fo fra fr fry fy gle ga gla gd glg gl grn gn guj gu glv gv hau ha
heb he hin hi hmo ho hrv hr hat ht hun hu hye hy her hz ina ia ind id ile ie ibo ig iii ii ipk ik
ido io isl is ita it iku iu jpn ja jav jv kat ka kon kg kik ki kua kj kaz kk kal kl khm km kan kn
kor ko kau kr kas ks kur ku kom kv cor kw kir ky lat la ltz lb lug lg lim li lin ln lao lo lit lt
lub lu lav lv mlg mg mah mh mri mi mkd mk mal ml mon mn mar mr msa ms mlt mt mya my nau na nob nb
nde nd nep ne ndo ng nld nl nno nn nor no nbl nr nav nv nya ny oci oc oji oj orm om ori or oss os
pan pa pli pi pol pl pus ps por pt que qu roh rm run rn ron ro rus ru kin rw san sa srd sc snd sd
sme se sag sg sin si slk sk slv sl smo sm sna sn som so sqi sq srp sr ssw ss sot st sun su swe sv
swa sw tam ta tel te tgk tg tha th tir ti tuk tk tgl tl tsn tn ton to tur tr tso ts tat tt twi tw
tah ty uig ug ukr uk urd ur uzb uz ven ve vie vi vol vo wln wa wol wo xho xh yid yi yor yo zha za
zho zh zul zu

alb sq arm hy baq eu bur my chi zh cmn zh yue zh wuu zh hak zh nan zh lzh zh cze cs dut nl fre fr
geo ka ger de gre el ice is mac mk may ms mao mi per fa rum ro slo sk tib bo wel cy arb ar arz ar
apc ar acm ar ary ar pes fa prs fa azj az ekk et lvs lv zsm ms swh sw npi ne ory or khk mn plt mg
quy qu uzn uz ydd yi als sq gaz om kmr ku ckb ku fil tl iw he in id ji yi jw jv mo ro sh sr
"""
CODES = dict(zip(_PAIRS.split()[::2], _PAIRS.split()[1::2], strict=True))

# Languages and scripts (ISO 15924) that are written without spaces between words.
UNSPACED_LANGUAGES = {"zh", "ja", "th", "lo", "km", "my", "bo", "dz", "shn", "nod", "lzh"}
UNSPACED_SCRIPTS = {
    "Hans",
    "Hant",
    "Hani",
    "Jpan",
    "Hira",
    "Kana",
    "Thai",
    "Laoo",
    "Khmr",
    "Mymr",
    "Tibt",
    "Lana",
    "Tale",
    "Talu",
    "Java",
    "Bali",
}
# The Unicode blocks of these scripts, with their punctuation and full-width forms.
_UNSPACED_CHARACTER = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\u3000-\u30ff\u31c0-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\ufe30-\ufe4f\uff01-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)
# The tokenizers that sacreBLEU itself chooses for these languages.
BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}


@dataclass(frozen=True)
class Language:
    """The language and script that a language code stands for."""

    # ISO 639-1 if it has a code for the language, otherwise the given code in lower case, or ""
    code: str
    script: str | None  # ISO 15924, such as `Latn`; None if the code has no script

    @property
    def is_unspaced(self) -> bool:
        """Whether words are written without spaces between them."""
        if self.script is None:
            return self.code in UNSPACED_LANGUAGES
        return self.script in UNSPACED_SCRIPTS

    @property
    def bleu_tokenizer(self) -> str:
        """The sacreBLEU tokenizer for BLEU: sacreBLEU's own choice for the language, or `char` for
        any other language without spaces between words.
        """
        return BLEU_TOKENIZERS.get(self.code, "char" if self.is_unspaced else "13a")


def parse_language(code: str | None) -> Language:
    """Return the language that `code` stands for. Unknown codes are lower-cased."""
    text = (code or "").strip().removeprefix(">>").removesuffix("<<")
    first, *others = re.split(r"[-_]", re.split(r"[.@]", text)[0])
    script = next((part.title() for part in others if re.fullmatch("[A-Za-z]{4}", part)), None)
    return Language(CODES.get(first.lower(), first.lower()), script)


def separator_between(before: str, after: str, language: Language) -> str:
    """Return the separator for joining two texts.

    It is a space, or nothing if the language or the script of either text is written without
    spaces.
    """
    ends = before[-1:] + after[:1]
    return "" if language.is_unspaced or _UNSPACED_CHARACTER.search(ends) else " "
