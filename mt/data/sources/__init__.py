"""Read parallel text from files and datasets, one `SentencePair` per line.

A line ends with `\\n` or `\\r\\n`; other separators, such as U+2028, do not end a line. The list
shows how unusual input is handled. `CorpusStats` counts all of it, except errors and byte-order
marks.

  the sides have different numbers of lines    error that gives both numbers
  UTF-16, binary data, lines ending in `\\r`     error that gives the command to convert the file
  byte-order mark at the start of a file       removed
  bytes that are not UTF-8                     `on_invalid_utf8`: error, replace, or skip the pair
  line that is empty on one side only          `on_one_sided_empty`: error, or skip the pair
  line that is empty on both sides             the pair is skipped
  `\\r`, NUL or line separator inside a line    kept
  newline inside the text of a dataset         replaced by a space
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
# A line that consists of more `CONTROLS` than this share is not text. UTF-16 has a share of about
# 0.5 for most languages.
MAX_CONTROLS = 0.25
NUM_LINES_CHECKED = 100  # number of lines at the start of a file for which this is checked
LINE_SEPARATORS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
ODD_CHARACTERS = {
    "with NUL": "\0",
    "with \\r inside": "\r",
    "with a line separator inside": LINE_SEPARATORS,
    "with a byte-order mark inside": "\ufeff",
}


class SentencePair(NamedTuple):
    """One training example as text."""

    src: str
    tgt: str


class CorpusStats(Counter[str]):
    """How many `pairs` were read, and how many had each kind of odd text."""

    def __str__(self) -> str:
        odd = ", ".join(
            f"{count:,} {what}" for what, count in sorted(self.items()) if what != "pairs" and count
        )
        return f"{self['pairs']:,} pairs" + (f" ({odd})" if odd else "")


class InvalidUtf8(Exception):
    """Raised for a line that is not UTF-8 if `on_invalid_utf8` is `skip`."""


def open_corpus(
    corpus: CorpusConfig, data: DataConfig, stats: CorpusStats
) -> Iterator[SentencePair]:
    """Yield the training pairs of a corpus in order, and count them in `stats`.

    Raises `DataError` for the errors listed in the module docstring.
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
                    f"{path}:{number}: this line is empty, but the other side is not "
                    "(set data.on_one_sided_empty: skip to drop such pairs)"
                )
            stats["skipped: empty on one side"] += 1
        else:
            stats.update(_oddities(pair))
            yield pair


def read_parallel(corpora: Iterable[CorpusConfig], data: DataConfig) -> tuple[list[str], list[str]]:
    """Return all source lines and all target lines of validation or test corpora.

    No line is dropped, so line N of one side is the translation of line N of the other.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for corpus in corpora:
        for number, pair in _decoded(corpus, data, CorpusStats()):
            if pair is None:
                raise DataError(
                    f"{corpus.label}:{number}: not UTF-8; lines of validation and test text cannot "
                    "be skipped (set data.on_invalid_utf8: replace)"
                )
            for side, text in zip(sides, pair, strict=True):
                side.append(text)
    if not sides[0]:
        raise DataError(f"{', '.join(corpus.label for corpus in corpora)}: no lines")
    return sides


def read_text(path: str | Path) -> list[str]:
    """Return all lines of a UTF-8 text file, read in the same way as training text.

    Raises `DataError` with the file and line of invalid UTF-8.
    """
    return [
        decode_line(line, f"{path}:{number}", "error", CorpusStats())
        for number, line in enumerate(text_lines(path), 1)
    ]


def text_lines(path: str | Path) -> Iterator[bytes]:
    """Yield the lines of a text file as bytes, without a byte-order mark. `-` is standard input.

    Raises `DataError` if the file is UTF-16 or binary, or if its lines end in `\\r` without `\\n`.
    """
    name = "standard input" if str(path) == "-" else path
    lines = read_lines(path)
    first = next(lines, None)
    if first is None:
        return
    if first.startswith(UTF16_MARKS):
        raise DataError(
            f"{name}: the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path} > NEW"
        )
    second: list[bytes] = []
    if first.rstrip(b"\r").count(b"\r") > 1 and not (second := list(itertools.islice(lines, 1))):
        raise DataError(
            f"{name}: lines end in \\r without \\n; convert it: tr '\\r' '\\n' < {path} > NEW"
        )
    for number, line in enumerate(
        itertools.chain([first.removeprefix(BYTE_ORDER_MARK)], second, lines), 1
    ):
        if number <= NUM_LINES_CHECKED and len(line) - len(line.translate(None, CONTROLS)) > max(
            2, MAX_CONTROLS * len(line)
        ):
            raise DataError(
                f"{name}:{number}: not UTF-8 text but binary data, or UTF-16 without a byte-order "
                f"mark; if it is UTF-16, convert it: iconv -f UTF-16LE -t UTF-8 {path} > NEW"
            )
        yield line


def decode_line(
    line: bytes,
    where: str,
    on_invalid: str,
    stats: CorpusStats,
    remedy: str = "data.on_invalid_utf8: replace or skip",
) -> str:
    """Return the text of a line, without a `\\r` at its end.

    `where` (file and line) and `remedy` (which option to set) are for error messages. If the line
    is not UTF-8, `on_invalid` decides: `error` raises `DataError`, `skip` raises `InvalidUtf8`, and
    `replace` puts U+FFFD in place of the invalid bytes.
    """
    if line.endswith(b"\r"):
        line = line[:-1]
        stats["with \\r at the end"] += 1
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if on_invalid == "skip":
            raise InvalidUtf8 from error
        if on_invalid == "error":
            invalid = line[error.start : error.start + 4].hex(" ")
            raise DataError(
                f"{where}: not UTF-8 at byte {error.start + 1} ({invalid}); convert the file, for "
                f"example with iconv -f LATIN1 -t UTF-8, or set {remedy}"
            ) from error
        stats["with bytes replaced (not UTF-8)"] += 1
        return line.decode("utf-8", errors="replace")


def _decoded(
    corpus: CorpusConfig, data: DataConfig, stats: CorpusStats
) -> Iterator[tuple[int, SentencePair | None]]:
    """Yield (line number, pair) for every line, with None for a pair that must be skipped."""
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
    """Yield pairs of lines with the same number.

    If the files do not have the same number of lines, raises `DataError` with both numbers.
    """
    sources, targets = text_lines(src), text_lines(tgt)
    for count, (source, target) in enumerate(itertools.zip_longest(sources, targets)):
        if source is None or target is None:
            rest = 1 + sum(1 for _ in (targets if source is None else sources))
            num_src, num_tgt = (count, count + rest) if source is None else (count + rest, count)
            raise DataError(
                f"{src} has {num_src:,} lines but {tgt} has {num_tgt:,}; "
                "parallel files must match line by line"
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
    except Exception as error:  # the library raises many kinds of exceptions
        raise DataError(
            f"{corpus.label}: datasets.load_dataset failed: {type(error).__name__}: {error}"
        ) from error


def _column(row: Any, name: str, where: str) -> str:
    value = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(
                f"{where}: no column {name!r}; the columns are {', '.join(map(str, row))}"
            )
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
