"""The token cache: a tokenized corpus on disk, read through memory maps, so that memory does not
grow with the corpus.

A folder holds, for each side, `<side>.tokens.bin` (uint16, or uint32 for vocabularies over 65,536)
and `<side>.offsets.bin` (uint64: pair i is tokens[offsets[i]:offsets[i + 1]], without end of
sentence), the checksums of both (`.crc`: a CRC-32 of each block of 64 KiB), and `manifest.json`. It
appears whole or not at all. A block is compared with its checksum when it is first read.
"""

import json
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mt.config import FilterConfig
from mt.data.checks import FilterStats, text_filter, token_filter
from mt.data.sentences import sentence_starts
from mt.data.sources import SentencePair
from mt.data.tokenizer import Tokenizer
from mt.errors import DataError
from mt.files import atomic_dir

SIDES = ("src", "tgt")
FORMAT_VERSION = 2
BLOCK = 1 << 16  # bytes that one checksum is of
SHARES = (0.5, 0.9, 0.99, 0.9999, 1.0)  # of lines, whose lengths are recorded
NUM_EXAMPLES = 3  # lines shown that a tokenizer does not give back
LINES_A_CALL = 4096  # pairs tokenized in one call: SentencePiece is fastest on lists

Ids = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Lengths:
    """What most training lines have at most: a share of lines, such as `0.99`, to a number; `1` to
    the most.
    """

    src: dict[str, int]  # subwords, end of sentence not counted
    tgt: dict[str, int]
    sentences: dict[str, int]  # of source lines


@dataclass(frozen=True)
class Lossy:
    """Target lines that do not come back from the tokenizer as they are, runs of spaces apart."""

    num_lines: int  # of how many
    count: int
    examples: list[tuple[str, str]]  # the first, with what comes back


class CheckedArray:
    """Numbers in a file, read through a memory map; damage to what is read raises `DataError`."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, length: int) -> None:
        self.path, self.file = path, path.open("rb")
        self.values = np.memmap(self.file, dtype, "r")
        self.checksums = np.fromfile(path.with_suffix(".crc"), np.uint32)
        num_bytes = path.stat().st_size
        if (num_bytes, len(self.checksums)) != (
            length * self.values.itemsize,
            -(-num_bytes // BLOCK),
        ):
            raise ValueError(f"{path.name} or its checksums are of another size than written")
        self._checked = np.zeros(len(self.checksums), np.bool_)

    def __getitem__(self, place: slice) -> Any:
        size = self.values.itemsize
        self.check(range(place.start * size // BLOCK, -(-place.stop * size // BLOCK)))
        return self.values[place]

    def at(self, indices: npt.NDArray[np.int64]) -> Any:
        """The numbers at `indices`."""
        if not self._checked.all():
            self.check(np.unique(indices * self.values.itemsize // BLOCK).tolist())
        return self.values[indices]

    def check(self, blocks: Iterable[int]) -> None:
        """Compare those of these blocks with their checksums that have not been yet."""
        for block in blocks:
            if self._checked[block]:
                continue
            content = self.values.view(np.uint8)[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(content.tobytes()) != self.checksums[block]:
                raise DataError(
                    f"{self.path}: damaged between bytes {block * BLOCK:,} and {(block + 1) * BLOCK:,}; delete {self.path.parent} and "
                    "start again: it is made from the text"
                )
            self._checked[block] = True

    def expect(self, start: int, stop: int) -> None:
        """Tell the system that the numbers of [start, stop) are read next."""
        if hasattr(os, "posix_fadvise"):
            size = self.values.itemsize
            os.posix_fadvise(
                self.file.fileno(), start * size, (stop - start) * size, os.POSIX_FADV_WILLNEED
            )


@dataclass
class _Side:
    tokens: CheckedArray
    offsets: CheckedArray

    def expect(self, runs: Sequence[tuple[int, int]]) -> None:
        """Let the system read these runs of pairs now, all at a time."""
        for start, stop in runs:
            self.offsets.expect(start, stop + 1)
        for start, stop in runs:
            first, end = self.offsets.at(np.array([start, stop])).tolist()
            self.tokens.expect(first, end)

    def __getitem__(self, index: int) -> Ids:
        start, stop = self.offsets[index : index + 2].tolist()
        ids: Ids = self.tokens[start:stop]
        return ids

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        lengths: npt.NDArray[np.int64] = (
            self.offsets.at(indices + 1) - self.offsets.at(indices)
        ).astype(np.int64)
        return lengths


class TokenCache:
    """Tokenized pairs by index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads(
                (folder / "manifest.json").read_text(encoding="utf-8")
            )
            self._src, self._tgt = (self._open(side) for side in SIDES)
            self.lossy = Lossy(**self.manifest["lossy"])
            self.lengths_seen = Lengths(**self.manifest["lengths"])
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
        return _Side(
            tokens,
            CheckedArray(
                self.folder / f"{side}.offsets.bin", np.uint64, self.manifest["pairs"] + 1
            ),
        )

    def __len__(self) -> int:
        return int(self.manifest["pairs"])

    def __getitem__(self, index: int) -> tuple[Ids, Ids]:
        return self._src[index], self._tgt[index]

    def expect(self, runs: Sequence[tuple[int, int]]) -> None:
        """Say that the pairs of these runs [start, stop) come next: one by one, those that are not
        in memory would take a seek each.
        """
        for side in (self._src, self._tgt):
            side.expect(runs)

    def lengths(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Source and target subwords of each pair, ends of sentence not counted."""
        return self._src.lengths(indices), self._tgt.lengths(indices)

    @property
    def num_tokens(self) -> dict[str, int]:
        """Subwords of each side, ends of sentence not counted."""
        return dict(self.manifest["tokens"])


def build_cache(
    pairs: Iterable[SentencePair],
    tokenizer: Tokenizer,
    filters: FilterConfig,
    folder: Path,
    about: dict[str, Any],
) -> tuple[TokenCache, FilterStats]:
    """Tokenize and filter `pairs` into `folder`; `about` goes into the manifest. Raises `DataError`
    where no pair is left.
    """
    stats, lossy = FilterStats(), Lossy(0, 0, [])
    counts: dict[str, Counter[int]] = {field.name: Counter() for field in fields(Lengths)}
    dtype = np.dtype(
        np.uint16
        if max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size) <= 1 << 16
        else np.uint32
    )
    with atomic_dir(folder) as temporary:
        writers = [_SideWriter(temporary, side, dtype) for side in SIDES]
        for texts, ids in _tokenized(pairs, tokenizer, filters, stats):
            lossy = _lossy(
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
            "version": FORMAT_VERSION, "dtype": dtype.name, "pairs": stats["kept"], "tokens": totals, "filters": dict(stats),
            "lossy": asdict(lossy), "lengths": {name: _quantiles(count) for name, count in counts.items()},
        }  # fmt: skip
        text = json.dumps({**manifest, **about}, indent=2, ensure_ascii=False)
        (temporary / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return TokenCache(folder), stats


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    """For each of `SHARES` the least number that this share of what was counted does not exceed."""
    total, found = counts.total(), {}
    for share in SHARES:
        seen = 0
        for number in sorted(counts):
            seen += counts[number]
            if seen >= share * total:
                found[f"{share:g}"] = number
                break
    return found


def _lossy(before: Lossy, lines: Sequence[str], decoded: Sequence[str]) -> Lossy:
    """`before`, with these lines and what came back of them counted."""
    changed = [
        (line, back)
        for line, back in zip(lines, decoded, strict=True)
        if line != back and _spaced(line) != _spaced(back)
    ]
    examples = [*before.examples, *changed][:NUM_EXAMPLES]
    return Lossy(before.num_lines + len(lines), before.count + len(changed), examples)


def _spaced(line: str) -> str:
    """The line with single spaces, and none at its ends."""
    return " ".join(word for word in line.split(" ") if word)


def _tokenized(
    pairs: Iterable[SentencePair], tokenizer: Tokenizer, filters: FilterConfig, stats: FilterStats
) -> Iterator[tuple[list[SentencePair], list[tuple[list[int], list[int]]]]]:
    """(texts, ids) of the pairs that are kept, many at a time."""
    remaining = iter(pairs)
    while chunk := list(islice(remaining, LINES_A_CALL)):
        short = []
        for pair in chunk:
            if dropped_by := text_filter(pair, filters):
                stats[dropped_by] += 1
            else:
                short.append(pair)
        sources = tokenizer.encode_src([pair.src for pair in short])
        targets = tokenizer.encode_tgt([pair.tgt for pair in short])
        texts, ids = [], []
        for pair, src, tgt in zip(short, sources, targets, strict=True):
            verdict = token_filter(src, tgt, filters) or "kept"
            stats[verdict] += 1
            if verdict == "kept":
                texts.append(pair)
                ids.append((src, tgt))
        yield texts, ids


class _CheckedWriter:
    """Writes a file and the checksums of its blocks."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = path.open("wb")
        self._checksums: BinaryIO = path.with_suffix(".crc").open("wb")
        self._pending = bytearray()

    def write(self, content: bytes) -> None:
        self._pending += content
        while len(self._pending) >= BLOCK:
            self._flush()

    def _flush(self) -> None:
        block = bytes(self._pending[:BLOCK])
        self._file.write(block)
        self._checksums.write(np.uint32(zlib.crc32(block)).tobytes())
        del self._pending[:BLOCK]

    def close(self) -> None:
        if self._pending:
            self._flush()
        self._file.close()
        self._checksums.close()


class _SideWriter:
    def __init__(self, folder: Path, side: str, dtype: np.dtype[Any]) -> None:
        self._dtype, self._end = dtype, 0
        self._tokens = _CheckedWriter(folder / f"{side}.tokens.bin")
        self._offsets = _CheckedWriter(folder / f"{side}.offsets.bin")
        self._offsets.write(np.uint64(0).tobytes())

    def add(self, ids: list[int]) -> None:
        self._tokens.write(np.asarray(ids, self._dtype).tobytes())
        self._end += len(ids)
        self._offsets.write(np.uint64(self._end).tobytes())

    def close(self) -> int:
        self._tokens.close()
        self._offsets.close()
        return self._end
