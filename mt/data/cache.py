"""The token cache: a tokenized corpus on disk, read through memory maps, so that memory does not grow with the corpus.

A folder holds, for each side, `<side>.tokens.bin` (uint16, or uint32 for vocabularies over 65,536) and `<side>.offsets.bin` (uint64: pair
i is tokens[offsets[i]:offsets[i + 1]], without end of sentence), and `manifest.json`. It appears whole or not at all.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mt.config import FilterConfig
from mt.data.corpus import SentencePair
from mt.data.filters import FilterStats, text_filter, token_filter
from mt.data.tokenizer import Tokenizer
from mt.errors import DataError
from mt.files import atomic_dir

SIDES = ("src", "tgt")
FORMAT_VERSION = 1
LINES_A_CALL = 4096  # pairs tokenized in one call: SentencePiece is fastest on lists

Ids = npt.NDArray[np.unsignedinteger[Any]]


@dataclass
class _Side:
    tokens: Ids
    offsets: npt.NDArray[np.uint64]
    files: tuple[BinaryIO, BinaryIO]  # of both, for what the system is told of them

    def expect(self, runs: Sequence[tuple[int, int]]) -> None:
        """Let the system read these runs of pairs now, all at a time."""
        token_file, offset_file = self.files
        for start, stop in runs:
            _expect(offset_file, 8 * start, 8 * (stop + 1))
        for start, stop in runs:
            _expect(token_file, *(int(self.offsets[i]) * self.tokens.itemsize for i in (start, stop)))

    def __getitem__(self, index: int) -> Ids:
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (self.offsets[indices + 1] - self.offsets[indices]).astype(np.int64)


def _expect(file: BinaryIO, start: int, stop: int) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)


class TokenCache:
    """Tokenized pairs by index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            self._src, self._tgt = (self._open(side) for side in SIDES)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: damaged token cache ({error}); delete this folder and start again") from error

    def _open(self, side: str) -> _Side:
        dtype = np.dtype(self.manifest["dtype"])
        tokens, offsets = self.folder / f"{side}.tokens.bin", self.folder / f"{side}.offsets.bin"
        expected = (self.manifest["tokens"][side] * dtype.itemsize, (self.manifest["pairs"] + 1) * 8)
        if (tokens.stat().st_size, offsets.stat().st_size) != expected:
            raise ValueError(f"{side} files are of another size than written")
        files = tokens.open("rb"), offsets.open("rb")
        return _Side(np.memmap(files[0], dtype, "r"), np.memmap(files[1], np.uint64, "r"), files)

    def __len__(self) -> int:
        return int(self.manifest["pairs"])

    def __getitem__(self, index: int) -> tuple[Ids, Ids]:
        return self._src[index], self._tgt[index]

    def expect(self, runs: Sequence[tuple[int, int]]) -> None:
        """Say that the pairs of these runs [start, stop) come next: one by one, those that are not in memory would take a seek each."""
        for side in (self._src, self._tgt):
            side.expect(runs)

    def lengths(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Source and target subwords of each pair, ends of sentence not counted."""
        return self._src.lengths(indices), self._tgt.lengths(indices)

    @property
    def num_tokens(self) -> dict[str, int]:
        """Subwords of each side, ends of sentence not counted."""
        return dict(self.manifest["tokens"])


def build_cache(
    pairs: Iterable[SentencePair], tokenizer: Tokenizer, filters: FilterConfig, folder: Path, about: dict[str, Any]
) -> tuple[TokenCache, FilterStats]:
    """Tokenize and filter `pairs` into `folder`; `about` goes into the manifest. Raises `DataError` where no pair is left."""
    stats = FilterStats()
    dtype = np.dtype(np.uint16 if max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size) <= 1 << 16 else np.uint32)
    with atomic_dir(folder) as temporary:
        writers = [_SideWriter(temporary, side, dtype) for side in SIDES]
        for ids in _tokenized(pairs, tokenizer, filters, stats):
            for writer, side_ids in zip(writers, ids, strict=True):
                writer.add(side_ids)
        totals = {side: writer.close() for side, writer in zip(SIDES, writers, strict=True)}
        if not stats["kept"]:
            raise DataError(f"no training pairs are left: {stats}")
        manifest = {"version": FORMAT_VERSION, "dtype": dtype.name, "pairs": stats["kept"], "tokens": totals, "filters": dict(stats)}
        text = json.dumps({**manifest, **about}, indent=2, ensure_ascii=False)
        (temporary / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return TokenCache(folder), stats


def _tokenized(
    pairs: Iterable[SentencePair], tokenizer: Tokenizer, filters: FilterConfig, stats: FilterStats
) -> Iterator[tuple[list[int], list[int]]]:
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
        for src, tgt in zip(sources, targets, strict=True):
            verdict = token_filter(src, tgt, filters) or "kept"
            stats[verdict] += 1
            if verdict == "kept":
                yield src, tgt


class _SideWriter:
    def __init__(self, folder: Path, side: str, dtype: np.dtype[Any]) -> None:
        self._dtype, self._end = dtype, 0
        self._tokens: BinaryIO = (folder / f"{side}.tokens.bin").open("wb")
        self._offsets: BinaryIO = (folder / f"{side}.offsets.bin").open("wb")
        self._offsets.write(np.uint64(0).tobytes())

    def add(self, ids: list[int]) -> None:
        self._tokens.write(np.asarray(ids, self._dtype).tobytes())
        self._end += len(ids)
        self._offsets.write(np.uint64(self._end).tobytes())

    def close(self) -> int:
        self._tokens.close()
        self._offsets.close()
        return self._end
