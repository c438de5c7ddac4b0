"""Test the flags for suspicious translations, and the scores per bucket."""

import pytest

from mt.evaluation import build_metrics, corpus_scores
from mt.evaluation.diagnosis import (
    flags,
    length_ratio,
    rarest_word_counts,
    score_buckets,
    word_counts,
    words,
)
from tests.evaluation.texts import noisy, sample_text

SRC = "Herr Meier kaufte am 12. Mai 1.500 Äpfel in Berlin ."
REF = "Mr Meier bought 1,500 apples in Berlin on 12 May ."


@pytest.mark.parametrize(
    ("hyp", "expected"),
    [
        (REF, []),
        ("Mr Meier bought 1500 apples on 12 May in Berlin .", []),
        ("", ["empty"]),
        (SRC, ["copy"]),
        ("Mr Meier kaufte am 12. Mai 1.500 Äpfel in Berlin .", ["copy"]),
        ("Mr Meier bought 1,500 apples in Berlin on 12 May , very very very good .", ["loop"]),
        (
            "Mr Meier bought 1,500 apples in Berlin on 12 May in a tree in a tree in a tree .",
            ["loop"],
        ),
        (
            REF + " He also bought many other things that nobody ever spoke of in the whole town ,"
            " as far as we know today .",
            ["long"],
        ),
        ("Mr Meier bought apples in Berlin on 12 May .", ["number"]),
        ("Mr Müller bought 1,500 apples on 12 May .", ["name"]),
        ("Господин Meier купил 1500 яблок в Berlin 12 мая .", ["script"]),
    ],
)
def test_a_translation_is_flagged_for_what_is_wrong_with_it_and_nothing_else(
    hyp: str, expected: list[str]
) -> None:
    assert flags(SRC, REF, hyp) == expected


@pytest.mark.parametrize(
    ("src", "ref", "hyp"),
    [
        ("nein nein nein", "no no no", "no no no"),  # the reference also repeats words
        ("", "", ""),
        ("Angela Merkel sprach", "Angela Merkel spoke", "Angela Merkel spoke"),
        ("ein Hund", "犬がいます", "犬がいる"),  # the reference is also in Japanese
        ("日本語です", "それは日本語です", "それは日本語"),
    ],
)
def test_properties_that_the_reference_shares_are_not_flagged(src: str, ref: str, hyp: str) -> None:
    assert flags(src, ref, hyp) == []


def test_words_have_no_punctuation_and_scripts_without_spaces_are_read_by_character() -> None:
    assert words("Don't stop, it's 12.5 o'clock-ish!") == [
        "don't",
        "stop",
        "it's",
        "12.5",
        "o'clock-ish",
    ]
    assert words("犬が 2匹") == ["犬", "が", "2", "匹"]


def test_the_score_of_a_bucket_is_the_corpus_score_of_its_sentences() -> None:
    refs = sample_text()
    systems, metrics = [noisy(refs), noisy(refs, seed=4)], build_metrics(["bleu"])
    keys, ranges = [len(words(ref)) for ref in refs], ((0, 5), (5, 7), (7, 9), (9, 999))
    buckets = score_buckets(keys, (5, 7, 9), systems, [refs], metrics)
    assert [bucket.label for bucket in buckets] == ["1-5", "6-7", "8-9", "10 or more"]
    assert [bucket.count for bucket in buckets] == [
        sum(low < key <= high for key in keys) for low, high in ranges
    ]
    for bucket, (low, high) in zip(buckets, ranges, strict=True):
        members = [i for i, key in enumerate(keys) if low < key <= high]
        for hyps, score in zip(systems, bucket.scores, strict=True):
            expected = corpus_scores(
                [hyps[i] for i in members], [[refs[i] for i in members]], metrics
            )["bleu"].value
            assert score == pytest.approx(expected)
    assert sum(bucket.count for bucket in buckets) == len(refs)


def test_rarity_is_the_count_of_the_rarest_word() -> None:
    counts = word_counts(["the cat", "the dog", "The end"])
    assert rarest_word_counts(["the cat", "the", "a dog", ""], counts) == [1, 3, 0, 0]
    lines = ["x", "y", "", "z"]
    buckets = score_buckets([0, 5, 50, 500], (0, 9, 99), [lines], [lines], build_metrics(["chrf"]))
    assert [bucket.label for bucket in buckets] == ["0", "1-9", "10-99", "100 or more"]
    assert [bucket.scores[0] is None for bucket in buckets] == [
        False,
        False,
        True,
        False,
    ]  # the bucket with only an empty reference has no score
    assert [
        bucket.label
        for bucket in score_buckets([50], (0, 9, 99), [["x"]], [["x"]], build_metrics(["chrf"]))
    ] == ["10-99"]


def test_a_translation_that_gains_little_from_its_source_is_flagged() -> None:
    assert flags("ein Hund", "a dog", "a dog", 4.0) == []
    assert flags("ein Hund", "a dog", "the weather", 0.3) == ["detached"]
    assert flags("", "a dog", "the weather", 0.0) == []


def test_the_length_ratio_is_words_to_words() -> None:
    assert length_ratio(["a b c", "d"], ["a b", "d e f g h i"]) == 0.5
