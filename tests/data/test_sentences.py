"""Test `mt.data.sentences`: lines in many scripts are split into the right sentences."""

from itertools import pairwise

import pytest

from mt.data.sentences import sentence_starts

LINES = [
    ["Hello there. ", "How are you? ", "Fine!"],
    ["Dr. Smith came. ", "He left in 1999. ", "J. R. Smith stayed."],
    ["Am 3. Mai kam er. ", "Dann, z. B. um acht, ging er."],
    ["He said: \u201cNo.\u201d ", "Then he left."],
    ["wait... what? ", "Ok"],
    ["Visit example.com now. ", "It costs 3.50 euros."],
    ["\u4f60\u597d\u3002", "\u4eca\u5929\u597d\u5417\uff1f", "\u597d\uff01"],
    ["\u300c\u306f\u3044\u3002\u300d", "\u305d\u3046\u3067\u3059\u3002"],
    ["\u092f\u0939 \u0939\u0948\u0964 ", "\u0935\u0939 \u0939\u0948\u0964"],
    ["\u00bfQu\u00e9? ", "\u00a1No! ", "\u2013 S\u00ed."],
    ["\u0627\u0644\u0633\u0644\u0627\u0645\u061f ", "\u0646\u0639\u0645."],
    ["one. two. three"],
    ["  Padded. ", "Twice.  "],
    [""],
]


@pytest.mark.parametrize("sentences", LINES, ids=str)
def test_a_line_is_split_into_its_sentences(sentences: list[str]) -> None:
    line = "".join(sentences)
    starts = sentence_starts(line)
    assert [line[start:end] for start, end in pairwise([*starts, len(line)])] == sentences
