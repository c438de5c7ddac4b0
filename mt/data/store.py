"""The token cache: a tokenized corpus on disk, memory-mapped because it may not fit in memory.

Files of the folder, where `<side>` is `src` or `tgt`:

  <side>.tokens.bin     the ids of all lines; uint16, or uint32 if a vocabulary is over 65,536
  <side>.offsets.bin    uint64; line i is tokens[offsets[i]:offsets[i + 1]], without the
                        end-of-sentence token
  <side>.*.crc          checksums of these files (see `mt.data.checked_array`)
  manifest.json         sizes, statistics and what the cache was made from

The folder is written atomically.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mt.config import FilterConfig
from mt.data.batch import IntArray, Rows
from mt.data.checked_array import CheckedArray, CheckedWriter
from mt.data.checks import FilterStats, text_filter, token_filter
from mt.data.sentences import sentence_starts
from mt.data.sources import SentencePair
from mt.data.tokenizer import Tokenizer
from mt.errors import DataError
from mt.files import atomic_dir

SIDES = ("src", "tgt")
FORMAT_VERSION = 2
QUANTILES = (0.5, 0.9, 0.99, 0.9999, 1.0)  # shares of lines; see `LengthQuantiles`
NUM_EXAMPLES = 3  # how many lines that the tokenizer changes are stored as examples
LINES_PER_CALL = 4096  # one call for many lines is faster than one call per line


@dataclass(frozen=True)
class LengthQuantiles:
    """Length quantiles of the training lines.

    `src["0.99"]` is the length that 99% of the source lines do not exceed; `src["1"]` is the
    maximum.
    """

    src: dict[str, int]  # subwords per source line, without the end-of-sentence token
    tgt: dict[str, int]  # subwords per target line, without the end-of-sentence token
    sentences: dict[str, int]  # sentences per source line


@dataclass(frozen=True)
class LossyLines:
    """Target lines that the tokenizer changes when it encodes and decodes them.

    Differences in runs of spaces do not count.
    """

    num_lines: int  # number of lines compared
    count: int  # number of lines changed
    examples: list[tuple[str, str]]  # the first changed lines: (line, decoded line)


@dataclass
class _Side:
    tokens: CheckedArray
    offsets: CheckedArray

    def read_ahead(self, runs: Sequence[tuple[int, int]]) -> None:
        # Two loops, so that the offsets of all runs are already loading when the first is needed.
        for start, stop in runs:
            self.offsets.read_ahead(start, stop + 1)
        for start, stop in runs:
            first, end = self.offsets.at(np.array([start, stop])).tolist()
            self.tokens.read_ahead(first, end)

    def rows(self, indices: IntArray) -> Rows:
        starts, lens = self.spans(indices)
        # The result has the rows one after another, so all ids of a row move by the same distance.
        distances = starts - (np.cumsum(lens) - lens)
        return Rows(self.tokens.at(np.repeat(distances, lens) + np.arange(lens.sum())), lens)

    def spans(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Return the starts and the lengths of rows in `tokens`."""
        starts = self.offsets.at(indices).astype(np.int64)
        return starts, self.offsets.at(indices + 1).astype(np.int64) - starts


class TokenCache:
    """A tokenized corpus on disk.

    Raises `DataError` if a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads(
                (folder / "manifest.json").read_text(encoding="utf-8")
            )
            self._src, self._tgt = (self._open(side) for side in SIDES)
            self.lossy = LossyLines(**self.manifest["lossy"])
            self.length_quantiles = LengthQuantiles(**self.manifest["lengths"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: damaged token cache ({error}); delete this folder and start again"
            ) from error

    def _open(self, side: str) -> _Side:
        tokens = CheckedArray(
            self.folder / f"{side}.tokens.bin",
            np.dtype(self.manifest["dtype"]),
            self.manifest["tokens"][side],
        )
        offsets = CheckedArray(self.folder / f"{side}.offsets.bin", np.uint64, len(self) + 1)
        return _Side(tokens, offsets)

    def __len__(self) -> int:
        return int(self.manifest["pairs"])

    def read_ahead(self, runs: Sequence[tuple[int, int]]) -> None:
        """Ask the operating system to load the pairs of all runs [start, stop) in the background.

        Without this, each pair that is not in memory yet would cost a separate disk access.
        """
        for side in (self._src, self._tgt):
            side.read_ahead(runs)

    def rows(self, indices: IntArray) -> tuple[Rows, Rows]:
        """Return the source ids and target ids of pairs, without end-of-sentence tokens."""
        return self._src.rows(indices), self._tgt.rows(indices)

    def lengths(self, indices: IntArray) -> tuple[IntArray, IntArray]:
        """Return the source and target lengths of pairs in subwords, without end-of-sentence."""
        return self._src.spans(indices)[1], self._tgt.spans(indices)[1]

    @property
    def num_tokens(self) -> dict[str, int]:
        """How many subwords each side has in total, without end-of-sentence tokens."""
        return dict(self.manifest["tokens"])


def build_cache(
    pairs: Iterable[SentencePair],
    tokenizer: Tokenizer,
    filters: FilterConfig,
    folder: Path,
    about: dict[str, Any],
) -> tuple[TokenCache, FilterStats]:
    """Filter and tokenize `pairs`, and write them to `folder`. `about` is added to the manifest.

    Raises `DataError` if the filters keep no pair.
    """
    stats, lossy = FilterStats(), LossyLines(0, 0, [])
    counts: dict[str, Counter[int]] = {field.name: Counter() for field in fields(LengthQuantiles)}
    dtype = np.dtype(
        np.uint16
        if max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size) <= 1 << 16
        else np.uint32
    )
    with atomic_dir(folder) as temporary:
        writers = [_SideWriter(temporary, side, dtype) for side in SIDES]
        for texts, ids in _tokenized(pairs, tokenizer, filters, stats):
            lossy = _add_lossy(
                lossy,
                [pair.tgt for pair in texts],
                tokenizer.decode_tgt_lines([tgt for _, tgt in ids]),
            )
            counts["src"].update(len(src) for src, _ in ids)
            counts["tgt"].update(len(tgt) for _, tgt in ids)
            counts["sentences"].update(len(sentence_starts(pair.src)) for pair in texts)
            for pair in ids:
                for writer, side_ids in zip(writers, pair, strict=True):
                    writer.add(side_ids)
        totals = {side: writer.close() for side, writer in zip(SIDES, writers, strict=True)}
        if not stats["kept"]:
            raise DataError(f"no training pairs are left: {stats}")
        manifest = {
            "version": FORMAT_VERSION,
            "dtype": dtype.name,
            "pairs": stats["kept"],
            "tokens": totals,
            "filters": dict(stats),
            "lossy": asdict(lossy),
            "lengths": {name: _quantiles(count) for name, count in counts.items()},
        }
        text = json.dumps({**manifest, **about}, indent=2, ensure_ascii=False)
        (temporary / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return TokenCache(folder), stats


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """Return the `QUANTILES` of some numbers, given how often each number occurs."""
    total, quantiles = counts.total(), {}
    for share in QUANTILES:
        num_covered = 0
        for number in sorted(counts):
            num_covered += counts[number]
            if num_covered >= share * total:
                quantiles[f"{share:g}"] = number
                break
    return quantiles


def _add_lossy(lossy: LossyLines, lines: Sequence[str], decoded: Sequence[str]) -> LossyLines:
    """Add `lines` to the counts in `lossy`. `decoded` are the same lines after decoding."""
    changed = [
        (line, back)
        for line, back in zip(lines, decoded, strict=True)
        if line != back and _normalize_spaces(line) != _normalize_spaces(back)
    ]
    examples = [*lossy.examples, *changed][:NUM_EXAMPLES]
    return LossyLines(lossy.num_lines + len(lines), lossy.count + len(changed), examples)


def _normalize_spaces(line: str) -> str:
    """Replace runs of spaces by single spaces, and strip spaces at both ends."""
    return " ".join(word for word in line.split(" ") if word)


def _tokenized(
    pairs: Iterable[SentencePair], tokenizer: Tokenizer, filters: FilterConfig, stats: FilterStats
) -> Iterator[tuple[list[SentencePair], list[tuple[list[int], list[int]]]]]:
    """Yield (texts, ids) for the pairs that the filters keep, many pairs at a time."""
    remaining = iter(pairs)
    while chunk := list(islice(remaining, LINES_PER_CALL)):
        candidates = []
        for pair in chunk:
            if dropped_by := text_filter(pair, filters):
                stats[dropped_by] += 1
            else:
                candidates.append(pair)
        sources = tokenizer.encode_src([pair.src for pair in candidates])
        targets = tokenizer.encode_tgt([pair.tgt for pair in candidates])
        texts, ids = [], []
        for pair, src, tgt in zip(candidates, sources, targets, strict=True):
            verdict = token_filter(src, tgt, filters) or "kept"
            stats[verdict] += 1
            if verdict == "kept":
                texts.append(pair)
                ids.append((src, tgt))
        yield texts, ids


class _SideWriter:
    """Writes the ids and offsets for one side of the corpus."""

    def __init__(self, folder: Path, side: str, dtype: np.dtype[Any]) -> None:
        self._dtype, self._end = dtype, 0
        self._tokens = CheckedWriter(folder / f"{side}.tokens.bin")
        self._offsets = CheckedWriter(folder / f"{side}.offsets.bin")
        self._offsets.write(np.uint64(0).tobytes())

    def add(self, ids: list[int]) -> None:
        self._tokens.write(np.asarray(ids, self._dtype).tobytes())
        self._end += len(ids)
        self._offsets.write(np.uint64(self._end).tobytes())

    def close(self) -> int:
        """Close the files and return the total number of ids."""
        self._tokens.close()
        self._offsets.close()
        return self._end
