"""Tests of `mt.config.languages`: one language, whatever kind of code says it."""

import pytest

from mt.config.languages import CODES, Language, parse_language, separator_between


@pytest.mark.parametrize(
    "code",
    ["de", "DE", "de-AT", "de_DE.UTF-8", "deu", "ger", "deu_Latn", "de-Latn-DE", ">>deu<<", " de "],
)
def test_german_is_german_in_every_kind_of_code(code: str) -> None:
    assert parse_language(code).code == "de"


@pytest.mark.parametrize(("code", "expected"), [
    ("jpn_Jpan", Language("ja", "Jpan")), ("zho_Hant", Language("zh", "Hant")), ("cmn-Hans-CN", Language("zh", "Hans")),
    ("kor_Hang", Language("ko", "Hang")), ("ayr_Latn", Language("ayr", "Latn")), ("", Language("", None)), (None, Language("", None)),
    ("he", Language("he", None)), ("iw", Language("he", None)), ("nob_Latn", Language("nb", "Latn")),
])  # fmt: skip
def test_codes_of_flores_and_others(code: str | None, expected: Language) -> None:
    assert parse_language(code) == expected


def test_the_table_holds_every_two_letter_code_once_for_each_three_letter_code() -> None:
    assert all(len(three) in (2, 3) and len(two) == 2 for three, two in CODES.items())
    assert len(set(CODES.values())) >= 180


@pytest.mark.parametrize(("before", "after", "lang", "joint"), [
    ("One.", "Two.", "en", " "), ("One.", "Two.", None, " "), ("\u4f60\u597d\u3002", "\u597d", None, ""), ("abc", "def", "th", ""),
    ("\u0e01", "\u0e02", "x", ""), ("\ud55c\uad6d", "\uc5b4", "ko", " "), ("Hi", "\u4f60", "zh", ""), ("ja", "nein", "ja-Latn", " "),
])  # fmt: skip
def test_parts_are_joined_by_a_space_only_where_words_are(
    before: str, after: str, lang: str | None, joint: str
) -> None:
    assert separator_between(before, after, parse_language(lang)) == joint
