"""Test `mt.data.sources`: every odd line is counted, or refused with its file and line number."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mt.config import CorpusConfig, DataConfig
from mt.data.sources import (
    LINE_SEPARATORS,
    CorpusStats,
    SentencePair,
    open_corpus,
    read_parallel,
    read_text,
)
from mt.errors import DataError

WriteCorpus = Callable[..., CorpusConfig]


def read(corpus: CorpusConfig, **options: Any) -> tuple[list[SentencePair], CorpusStats]:
    stats = CorpusStats()
    return list(open_corpus(corpus, DataConfig(**options), stats)), stats


# Text files


def test_pairs_are_read_in_order(write_corpus: WriteCorpus) -> None:
    pairs, stats = read(write_corpus("Größe\nzwei\n".encode(), b"size\ntwo"))
    assert pairs == [("Größe", "size"), ("zwei", "two")]
    assert stats == {"pairs": 2}


@pytest.mark.parametrize(("num_src", "num_tgt"), [(3, 5), (5, 3), (0, 2), (2, 0), (1233, 1234)])
def test_unequal_line_counts_are_refused_with_both_counts(
    write_corpus: WriteCorpus, num_src: int, num_tgt: int
) -> None:
    corpus = write_corpus(b"a\n" * num_src, b"b\n" * num_tgt)
    message = f"{corpus.src} has {num_src:,} lines but {corpus.tgt} has {num_tgt:,};"
    with pytest.raises(DataError, match=re.escape(message)):
        read(corpus)


@pytest.mark.parametrize("blank", [b"", b" \t", "\u00a0\u3000".encode(), b"\r"])
@pytest.mark.parametrize("empty_side", ["src", "tgt"])
def test_a_line_empty_on_one_side_is_refused_with_its_file_and_line(
    write_corpus: WriteCorpus, empty_side: str, blank: bytes
) -> None:
    full, gap = b"a\nb\nc\n", b"a\nb\n" + blank + b"\n"
    corpus = write_corpus(gap, full) if empty_side == "src" else write_corpus(full, gap)
    with pytest.raises(
        DataError, match=re.escape(f"{getattr(corpus, empty_side)}:3: this line is empty")
    ):
        read(corpus)
    pairs, stats = read(corpus, on_one_sided_empty="skip")
    assert [pair.src for pair in pairs] == ["a", "b"]
    assert (stats["pairs"], stats["skipped: empty on one side"]) == (3, 1)


def test_pairs_empty_on_both_sides_are_skipped_and_counted(write_corpus: WriteCorpus) -> None:
    pairs, stats = read(write_corpus(b"a\n\n \nd\n", b"1\n\n\n4\n"))
    assert pairs == [("a", "1"), ("d", "4")]
    assert stats == {"pairs": 4, "skipped: empty on both sides": 2}


@pytest.mark.parametrize("broken_side", ["src", "tgt"])
def test_a_line_that_is_not_utf8_is_refused_with_its_file_line_and_byte(
    write_corpus: WriteCorpus, broken_side: str
) -> None:
    good, broken = b"one\ntwo\nthree\n", b"eins\nzw\xe4i\ndrei\n"
    corpus = write_corpus(broken, good) if broken_side == "src" else write_corpus(good, broken)
    with pytest.raises(
        DataError, match=re.escape(f"{getattr(corpus, broken_side)}:2: not UTF-8 at byte 3 (e4 69)")
    ):
        read(corpus)

    replaced, stats = read(corpus, on_invalid_utf8="replace")
    assert [getattr(pair, broken_side) for pair in replaced] == ["eins", "zw\ufffdi", "drei"]
    assert stats == {"pairs": 3, "with bytes replaced (not UTF-8)": 1}

    skipped, stats = read(corpus, on_invalid_utf8="skip")
    assert [getattr(pair, broken_side) for pair in skipped] == ["eins", "drei"]
    assert stats == {"pairs": 3, "skipped: not UTF-8": 1}


@pytest.mark.parametrize(
    "bad", [b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x80", b"\x80"]
)
def test_bytes_that_python_does_not_decode_are_refused(
    write_corpus: WriteCorpus, bad: bytes
) -> None:
    with pytest.raises(DataError, match=r"src:1: not UTF-8"):
        read(write_corpus(bad + b"\n", b"a\n"))


ODD = {
    "with NUL": ["a\0b", "\0"],
    "with \\r inside": ["a\rb", "\ra"],
    "with a line separator inside": [f"a{character}b" for character in LINE_SEPARATORS],
    "with \\r at the end": ["a\r"],
}


@pytest.mark.parametrize(
    ("what", "line"), [(what, line) for what, lines in ODD.items() for line in lines]
)
def test_an_odd_line_stays_one_line_and_is_counted(
    write_corpus: WriteCorpus, what: str, line: str
) -> None:
    pairs, stats = read(write_corpus(f"first\n{line}\nlast\n".encode(), b"1\n2\n3\n"))
    assert pairs == [("first", "1"), (line.removesuffix("\r"), "2"), ("last", "3")]
    assert stats == {"pairs": 3, what: 1}


def test_line_separators_are_those_of_splitlines_except_newlines() -> None:
    splits = {
        character
        for character in map(chr, range(0x110000))
        if len(f"a{character}b".splitlines()) > 1
    }
    assert splits == set(LINE_SEPARATORS) | {"\n", "\r"}


def test_windows_line_ends_give_the_same_pairs(
    write_corpus: WriteCorpus,
) -> None:
    unix, windows = b"a\n\nc\n", b"a\r\n\r\nc\r\n"
    expected, _ = read(write_corpus(unix, unix, "unix"))
    pairs, stats = read(write_corpus(windows, unix, "windows"))
    assert pairs == expected
    assert stats["with \\r at the end"] == 3


def test_stats_are_formatted_as_text() -> None:
    stats = CorpusStats({"pairs": 12_345, "with NUL": 1_000, "skipped: not UTF-8": 2, "never": 0})
    assert str(stats) == "12,345 pairs (2 skipped: not UTF-8, 1,000 with NUL)"
    assert str(CorpusStats({"pairs": 1})) == "1 pairs"


# Validation and test text


def test_validation_text_keeps_every_line_of_all_corpora(write_corpus: WriteCorpus) -> None:
    corpora = [
        write_corpus(b"a\n\n\nd\n", b"1\n2\n\n\n", "one"),
        write_corpus(b"\ne", b"\n5", "two"),
    ]
    assert read_parallel(corpora, DataConfig()) == (
        ["a", "", "", "d", "", "e"],
        ["1", "2", "", "", "", "5"],
    )


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_validation_text_that_is_not_utf8_is_refused_with_its_line(
    write_corpus: WriteCorpus, policy: str
) -> None:
    with pytest.raises(DataError, match=r":2: not UTF-8"):
        read_parallel([write_corpus(b"a\n\xff\n", b"1\n2\n")], DataConfig(on_invalid_utf8=policy))


def test_validation_text_without_lines_is_refused(write_corpus: WriteCorpus) -> None:
    with pytest.raises(DataError, match=r"train.src: no lines"):
        read_parallel([write_corpus(b"", b"")], DataConfig())


def test_read_text_returns_the_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("a\r\n\nc\u2028d".encode())
    assert read_text(tmp_path / "text") == ["a", "", "c\u2028d"]
    (tmp_path / "text").write_bytes(b"a\nb\xff\n")
    with pytest.raises(DataError, match=r"text:2: not UTF-8 at byte 2"):
        read_text(tmp_path / "text")


# Datasets

ROWS = [("Größe", "size"), ("zwei\nZeilen", "two lines"), ("drei \u2028 vier", 'three, "four"')]


@pytest.fixture
def datasets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the library `datasets`, with its cache in a temporary folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    return datasets


def write_rows(folder: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    if kind == "jsonl":
        (folder / "train.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    elif kind == "csv":
        with (folder / "train.csv").open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_local_dataset_gives_the_pairs_that_were_written(
    datasets: Any, tmp_path: Path, kind: str
) -> None:
    write_rows(
        tmp_path, kind, [{"id": i, "de": src, "en": tgt} for i, (src, tgt) in enumerate(ROWS)]
    )
    pairs, stats = read(CorpusConfig(dataset=str(tmp_path), src_column="de", tgt_column="en"))
    assert pairs == [(src.replace("\n", " "), tgt) for src, tgt in ROWS]
    assert stats == {"pairs": 3, "with a newline inside": 1, "with a line separator inside": 1}


def test_a_column_name_can_refer_to_a_dictionary_entry_and_a_wrong_one_is_refused(
    datasets: Any, tmp_path: Path
) -> None:
    write_rows(
        tmp_path,
        "jsonl",
        [{"id": 1, "translation": {"de": src, "en": tgt}} for src, tgt in ROWS[:1]],
    )
    corpus = {"dataset": str(tmp_path), "tgt_column": "translation.en"}
    assert read(CorpusConfig(**corpus, src_column="translation.de"))[0] == ROWS[:1]
    for wrong, message in [
        ("translation.fr", "no column 'translation.fr'; the columns are id, translation"),
        ("de", "no column 'de'; the columns are id, translation"),
        ("id.de", "no column 'id.de'"),
        ("id", "column 'id' holds int, not text"),
        ("translation", "column 'translation' holds dict, not text"),
    ]:
        with pytest.raises(DataError, match=f":train:1: {message}"):
            read(CorpusConfig(**corpus, src_column=wrong))


def test_a_missing_value_is_an_empty_side(datasets: Any, tmp_path: Path) -> None:
    write_rows(
        tmp_path,
        "jsonl",
        [{"de": "a", "en": "1"}, {"de": None, "en": "2"}, {"de": None, "en": None}],
    )
    corpus = CorpusConfig(dataset=str(tmp_path), src_column="de", tgt_column="en", name="rows")
    with pytest.raises(DataError, match=r"^rows:2: this line is empty"):
        read(corpus)
    pairs, stats = read(corpus, on_one_sided_empty="skip")
    assert pairs == [("a", "1")]
    assert stats == {"pairs": 3, "skipped: empty on one side": 1, "skipped: empty on both sides": 1}
    assert read_parallel([corpus], DataConfig()) == (["a", "", ""], ["1", "2", ""])


def test_the_error_of_a_dataset_that_cannot_be_loaded_names_it(
    datasets: Any, tmp_path: Path
) -> None:
    write_rows(tmp_path, "jsonl", [{"de": "a", "en": "1"}])
    columns = {"src_column": "de", "tgt_column": "en"}
    with pytest.raises(
        DataError, match=r":valid: datasets.load_dataset failed: ValueError: Unknown split"
    ):
        read(CorpusConfig(dataset=str(tmp_path), split="valid", **columns))
