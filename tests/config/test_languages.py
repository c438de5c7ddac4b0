"""Tests of `mt.config.languages`: every kind of code for a language gives the same language."""

import pytest

from mt.config.languages import CODES, Language, parse_language, separator_between


@pytest.mark.parametrize(
    "code",
    ["de", "DE", "de-AT", "de_DE.UTF-8", "deu", "ger", "deu_Latn", "de-Latn-DE", ">>deu<<", " de "],
)
def test_every_kind_of_code_for_german_gives_german(code: str) -> None:
    assert parse_language(code).code == "de"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("jpn_Jpan", Language("ja", "Jpan")),
        ("zho_Hant", Language("zh", "Hant")),
        ("cmn-Hans-CN", Language("zh", "Hans")),
        ("kor_Hang", Language("ko", "Hang")),
        ("ayr_Latn", Language("ayr", "Latn")),
        ("", Language("", None)),
        (None, Language("", None)),
        ("he", Language("he", None)),
        ("iw", Language("he", None)),
        ("nob_Latn", Language("nb", "Latn")),
    ],
)
def test_codes_of_flores_and_other_sources(code: str | None, expected: Language) -> None:
    assert parse_language(code) == expected


def test_the_table_maps_codes_to_at_least_180_two_letter_codes() -> None:
    assert all(len(three) in (2, 3) and len(two) == 2 for three, two in CODES.items())
    assert len(set(CODES.values())) >= 180


@pytest.mark.parametrize(
    ("before", "after", "lang", "separator"),
    [
        ("One.", "Two.", "en", " "),
        ("One.", "Two.", None, " "),
        ("\u4f60\u597d\u3002", "\u597d", None, ""),
        ("abc", "def", "th", ""),
        ("\u0e01", "\u0e02", "x", ""),
        ("\ud55c\uad6d", "\uc5b4", "ko", " "),
        ("Hi", "\u4f60", "zh", ""),
        ("ja", "nein", "ja-Latn", " "),
    ],
)
def test_texts_are_joined_by_a_space_only_if_the_language_uses_spaces(
    before: str, after: str, lang: str | None, separator: str
) -> None:
    assert separator_between(before, after, parse_language(lang)) == separator
