"""Parallel text as it stands in files and datasets: one `SentencePair` a line, every odd line
counted or refused.

A line is bytes up to `\\n` with one `\\r` before it dropped; U+2028 and its kind stand inside
lines. What can be wrong and its fate:
  - the sides differ in their number of lines    error with both counts
  - UTF-16, binary, or lines that end in `\\r`     error with the command that converts the file
  - a byte-order mark at the beginning           dropped
  - bytes that are not UTF-8                     `on_invalid_utf8`: error, replaced, or the pair
    skipped
  - empty on one side only                       `on_one_sided_empty`: error, or the pair skipped
  - empty on both sides                          skipped
  - `\\r`, NUL, line separators inside            kept as they are
  - a newline inside a dataset's text            becomes a space
What is not an error is counted in `CorpusStats`, but for the mark.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mt.config import CorpusConfig, DataConfig
from mt.errors import DataError
from mt.files import BYTE_ORDER_MARK, read_lines

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
CONTROLS = bytes({*range(32)} - set(b"\t\n\v\f\r\x1b\x1c\x1d\x1e"))
MAX_CONTROLS = 0.25  # share of a line in text; half of UTF-16 is such bytes, in most languages
LINES_LOOKED_INTO = 100
LINE_SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
ODD_CHARACTERS = {
    "with NUL": "\0", "with \\r inside": "\r", "with a line separator inside": LINE_SEPARATORS, "with a byte-order mark inside": "\ufeff",
}  # fmt: skip


class SentencePair(NamedTuple):
    """One training example as text."""

    src: str
    tgt: str


class CorpusStats(Counter[str]):
    """How many pairs were read (`pairs`), and how many had each oddity."""

    def __str__(self) -> str:
        odd = ", ".join(
            f"{count:,} {what}" for what, count in sorted(self.items()) if what != "pairs" and count
        )
        return f"{self['pairs']:,} pairs" + (f" ({odd})" if odd else "")


class InvalidUtf8(Exception):
    """A line that is not UTF-8 where the configuration says to skip it."""


def open_corpus(
    corpus: CorpusConfig, data: DataConfig, stats: CorpusStats
) -> Iterator[SentencePair]:
    """Training pairs of one corpus in their order, `stats` filled on the way. Raises `DataError` as
    the module says.
    """
    for number, pair in _decoded(corpus, data, stats):
        stats["pairs"] += 1
        if pair is None:
            stats["skipped: not UTF-8"] += 1
            continue
        empty_src, empty_tgt = not pair.src.strip(), not pair.tgt.strip()
        if empty_src and empty_tgt:
            stats["skipped: empty on both sides"] += 1
        elif empty_src or empty_tgt:
            if data.on_one_sided_empty == "error":
                path = corpus.label if corpus.dataset else (corpus.src if empty_src else corpus.tgt)
                raise DataError(
                    f"{path}:{number}: empty, but its other side is not (data.on_one_sided_empty: skip leaves it out)"
                )
            stats["skipped: empty on one side"] += 1
        else:
            stats.update(_oddities(pair))
            yield pair


def read_parallel(corpora: Iterable[CorpusConfig], data: DataConfig) -> tuple[list[str], list[str]]:
    """Source and target lines of validation or test corpora, nothing left out: line N of one
    translates line N of the other.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for corpus in corpora:
        for number, pair in _decoded(corpus, data, CorpusStats()):
            if pair is None:
                raise DataError(
                    f"{corpus.label}:{number}: not UTF-8; validation and test text cannot skip lines (choose replace)"
                )
            for side, text in zip(sides, pair, strict=True):
                side.append(text)
    if not sides[0]:
        raise DataError(f"{', '.join(corpus.label for corpus in corpora)}: no lines")
    return sides


def read_text(path: str | Path) -> list[str]:
    """All lines of one UTF-8 text file, as `open_corpus` reads them. Raises `DataError` with file
    and line.
    """
    return [
        decode_line(line, f"{path}:{number}", "error", CorpusStats())
        for number, line in enumerate(text_lines(path), 1)
    ]


def text_lines(path: str | Path) -> Iterator[bytes]:
    """The lines of a text file, without a byte-order mark before the first.

    Raises `DataError` for UTF-16, for bytes that are no text, and for lines that end in `\\r`
    alone.
    """
    name = "standard input" if str(path) == "-" else path
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first.startswith(UTF16_MARKS):
        raise DataError(
            f"{name}: UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path} > NEW"
        )
    second: list[bytes] = []
    if first.rstrip(b"\r").count(b"\r") > 1 and not (second := list(itertools.islice(lines, 1))):
        raise DataError(
            f"{name}: its lines end in carriage returns alone; convert it: tr '\\r' '\\n' < {path} > NEW"
        )
    for number, line in enumerate(
        itertools.chain([first.removeprefix(BYTE_ORDER_MARK)], second, lines), 1
    ):
        if number <= LINES_LOOKED_INTO and len(line) - len(line.translate(None, CONTROLS)) > max(
            2, MAX_CONTROLS * len(line)
        ):
            raise DataError(
                f"{name}:{number}: not text in UTF-8 but binary, or UTF-16 without its mark; if so, convert it: "
                f"iconv -f UTF-16LE -t UTF-8 {path} > NEW"
            )
        yield line


def decode_line(
    line: bytes,
    where: str,
    on_invalid: str,
    stats: CorpusStats,
    remedy: str = "data.on_invalid_utf8: replace or skip",
) -> str:
    """The text of one line. Raises `DataError`, or `InvalidUtf8` where `on_invalid` is `skip`."""
    if line.endswith(b"\r"):
        line = line[:-1]
        stats["with \\r at the end"] += 1
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if on_invalid == "skip":
            raise InvalidUtf8 from error
        if on_invalid == "error":
            found = line[error.start : error.start + 4].hex(" ")
            raise DataError(
                f"{where}: not UTF-8 at byte {error.start + 1} ({found}); convert the file, as with iconv -f LATIN1 -t UTF-8, or choose "
                f"{remedy}"
            ) from error
        stats["with bytes replaced (not UTF-8)"] += 1
        return line.decode("utf-8", errors="replace")


def _decoded(
    corpus: CorpusConfig, data: DataConfig, stats: CorpusStats
) -> Iterator[tuple[int, SentencePair | None]]:
    """(line number, pair), None for a pair to skip."""
    if corpus.dataset is not None:
        yield from enumerate(_dataset_pairs(corpus, stats), 1)
        return
    assert corpus.src is not None
    assert corpus.tgt is not None
    policy = data.on_invalid_utf8
    for number, (src, tgt) in enumerate(_paired_lines(corpus.src, corpus.tgt), 1):
        try:
            source = decode_line(src, f"{corpus.src}:{number}", policy, stats)
            target = decode_line(tgt, f"{corpus.tgt}:{number}", policy, stats)
        except InvalidUtf8:
            yield number, None
        else:
            yield number, SentencePair(source, target)


def _paired_lines(src: str, tgt: str) -> Iterator[tuple[bytes, bytes]]:
    """Lines of two files together. Raises `DataError` with both counts where one ends first."""
    sources, targets = text_lines(src), text_lines(tgt)
    for count, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            rest = 1 + sum(1 for _ in (targets if source is None else sources))
            num_src, num_tgt = (count, count + rest) if source is None else (count + rest, count)
            raise DataError(
                f"{src} has {num_src:,} lines but {tgt} has {num_tgt:,}; parallel files must match line by line"
            )
        yield source, target


def _dataset_pairs(corpus: CorpusConfig, stats: CorpusStats) -> Iterator[SentencePair]:
    rows = _load_dataset(corpus)
    assert corpus.src_column is not None
    assert corpus.tgt_column is not None
    for number, row in enumerate(rows, 1):
        sides = [
            _column(row, name, f"{corpus.label}:{number}")
            for name in (corpus.src_column, corpus.tgt_column)
        ]
        if any("\n" in side for side in sides):
            stats["with a newline inside"] += 1
            sides = [side.replace("\n", " ") for side in sides]
        yield SentencePair(*sides)


def _load_dataset(corpus: CorpusConfig) -> Any:
    import datasets

    datasets.disable_progress_bars()
    assert corpus.dataset is not None
    try:
        return datasets.load_dataset(corpus.dataset, corpus.subset, split=corpus.split)
    except Exception as error:  # the library raises a dozen kinds, network errors among them
        raise DataError(
            f"{corpus.label}: datasets.load_dataset failed: {type(error).__name__}: {error}"
        ) from error


def _column(row: Any, name: str, where: str) -> str:
    value = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"{where}: no column {name!r}; there are {', '.join(map(str, row))}")
        value = value[part]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {name!r} holds {type(value).__name__}, not text")
    return value


def _oddities(pair: SentencePair) -> Iterator[str]:
    for what, characters in ODD_CHARACTERS.items():
        if any(character in side for side in pair for character in characters):
            yield what
