"""Arrays on disk with checksums, so that damage to a file is noticed when it is first read.

The checksums of `NAME.bin` are in `NAME.crc`: the CRC-32 of every block of 64 KiB.
"""

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mt.errors import DataError

BLOCK = 1 << 16  # bytes per checksum


class CheckedArray:
    """A memory-mapped array of numbers. Reading a damaged part of the file raises `DataError`."""

    def __init__(self, path: Path, dtype: npt.DTypeLike, length: int) -> None:
        self.path, self.file = path, path.open("rb")
        self.values = np.memmap(self.file, dtype, "r")
        self.checksums = np.fromfile(path.with_suffix(".crc"), np.uint32)
        num_bytes = path.stat().st_size
        if (num_bytes, len(self.checksums)) != (
            length * self.values.itemsize,
            -(-num_bytes // BLOCK),
        ):
            raise ValueError(f"{path.name} or its checksum file has the wrong size")
        self._checked = np.zeros(len(self.checksums), np.bool_)

    def at(self, indices: npt.NDArray[np.int64]) -> Any:
        """Return the numbers at `indices`."""
        if not self._checked.all():
            self.check(np.unique(indices * self.values.itemsize // BLOCK).tolist())
        return self.values[indices]

    def check(self, blocks: Iterable[int]) -> None:
        """Compare the given blocks with their checksums, if this has not been done before.

        Raises `DataError` if a block is damaged.
        """
        for block in blocks:
            if self._checked[block]:
                continue
            content = self.values.view(np.uint8)[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(content.tobytes()) != self.checksums[block]:
                raise DataError(
                    f"{self.path} is damaged between bytes {block * BLOCK:,} and "
                    f"{(block + 1) * BLOCK:,}; delete {self.path.parent} and start again "
                    "(the folder is rebuilt from the text)"
                )
            self._checked[block] = True

    def read_ahead(self, start: int, stop: int) -> None:
        """Ask the operating system to load the numbers [start, stop) in the background."""
        if hasattr(os, "posix_fadvise"):
            size = self.values.itemsize
            os.posix_fadvise(
                self.file.fileno(), start * size, (stop - start) * size, os.POSIX_FADV_WILLNEED
            )


class CheckedWriter:
    """Writes a file, and next to it another file with the checksums of its blocks."""

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
