"""Micro-batches: group pairs of similar length into buckets, and turn each bucket into tensors."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID

IntArray = npt.NDArray[np.int64]
IdSequence = Sequence[int] | npt.NDArray[Any]
IdPair = tuple[IdSequence, IdSequence]


@dataclass(frozen=True)
class Batch:
    """One micro-batch, padded on the right with `PAD_ID`."""

    src: Tensor  # [batch, src_len] source ids, each row ending with `EOS_ID`
    src_mask: Tensor  # [batch, src_len] True for source tokens, False for padding
    tgt_in: Tensor  # [batch, tgt_len] decoder input: target ids, each row starting with `BOS_ID`
    tgt_out: Tensor  # [batch, tgt_len] expected output: target ids, each row ending with `EOS_ID`
    num_tokens: int  # number of target tokens, including end-of-sentence tokens but not padding


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch without padding, in which all sentences are concatenated.

    Sentence i of the source is `src[src_offsets[i]:src_offsets[i + 1]]`. The target is stored in
    the same way.
    """

    src: Tensor  # [src_tokens] source ids, each sentence ending with `EOS_ID`
    src_offsets: Tensor  # [batch + 1] int32
    max_src_len: int
    tgt_in: Tensor  # [tgt_tokens] decoder input, each sentence starting with `BOS_ID`
    tgt_out: Tensor  # [tgt_tokens] expected output, each sentence ending with `EOS_ID`
    tgt_offsets: Tensor  # [batch + 1] int32, the same for `tgt_in` and `tgt_out`
    max_tgt_len: int
    num_tokens: int  # number of target tokens, including end-of-sentence tokens


@dataclass(frozen=True)
class Rows:
    """Rows of ids, stored one after another in a single array.

    A GPU batch has thousands of rows. A Python loop over them would take about as long as the GPU
    needs for the batch, and would slow down the thread that controls the GPU.
    """

    ids: npt.NDArray[Any]  # [total length]
    lens: IntArray  # [rows]

    @classmethod
    def from_sequences(cls, sequences: Sequence[IdSequence]) -> "Rows":
        """Copy the ids of one or more sequences."""
        arrays = [np.asarray(sequence, np.int64) for sequence in sequences]
        return cls(np.concatenate(arrays), np.array([len(array) for array in arrays]))


AnyBatch = Batch | PackedBatch
B = TypeVar("B", bound=AnyBatch)


def to_device(batch: B, device: torch.device) -> B:
    """Return a copy of a CPU batch on `device`, or the batch itself if `device` is the CPU.

    The tensors are copied from pinned memory without waiting, so the device can keep computing.
    """
    if device.type == "cpu":
        return batch
    values = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    copies: dict[str, Any] = {
        name: value.pin_memory().to(device, non_blocking=True)
        for name, value in values
        if isinstance(value, Tensor)
    }
    return replace(batch, **copies)


def collate(pairs: Sequence[IdPair]) -> Batch:
    """Pad pairs of ids into a `Batch`, and add the beginning- and end-of-sentence tokens."""
    return collate_rows(*_sides(pairs))


def collate_rows(src: Rows, tgt: Rows) -> Batch:
    """Like `collate`, for pairs that are given as `Rows`."""
    src_ids = _pad(src, suffix=EOS_ID)
    return Batch(
        src=src_ids,
        src_mask=src_ids != PAD_ID,
        tgt_in=_pad(tgt, prefix=BOS_ID),
        tgt_out=_pad(tgt, suffix=EOS_ID),
        num_tokens=len(tgt.ids) + len(tgt.lens),
    )


def pack(pairs: Sequence[IdPair]) -> PackedBatch:
    """Concatenate pairs of ids into a `PackedBatch`, and add the same tokens as `collate`."""
    return pack_rows(*_sides(pairs))


def pack_rows(src: Rows, tgt: Rows) -> PackedBatch:
    """Like `pack`, for pairs that are given as `Rows`."""
    src_ends, tgt_ends = np.cumsum(src.lens), np.cumsum(tgt.lens)
    return PackedBatch(
        src=_with_inserted(src.ids, src_ends, EOS_ID),
        src_offsets=_offsets(src.lens + 1),
        max_src_len=int(src.lens.max()) + 1,
        tgt_in=_with_inserted(tgt.ids, tgt_ends - tgt.lens, BOS_ID),
        tgt_out=_with_inserted(tgt.ids, tgt_ends, EOS_ID),
        tgt_offsets=_offsets(tgt.lens + 1),
        max_tgt_len=int(tgt.lens.max()) + 1,
        num_tokens=len(tgt.ids) + len(tgt.lens),
    )


def unbatch(batch: AnyBatch) -> list[tuple[list[int], list[int]]]:
    """Return the pairs of ids in a CPU batch. This is the inverse of `collate` and `pack`."""
    if isinstance(batch, Batch):
        src, tgt = (
            [row[row != PAD_ID][:-1].tolist() for row in ids] for ids in (batch.src, batch.tgt_out)
        )
    else:
        packed = ((batch.src, batch.src_offsets), (batch.tgt_out, batch.tgt_offsets))
        src, tgt = (
            [row[:-1].tolist() for row in ids.split(offsets.diff().tolist())]
            for ids, offsets in packed
        )
    return list(zip(src, tgt, strict=True))


def empty_batch(shape: tuple[int, int, int], device: torch.device, packed: bool) -> AnyBatch:
    """Return a dummy micro-batch with the given `shape` (rows, src_len, tgt_len)."""
    rows, src_len, tgt_len = shape
    src, tgt = (
        torch.ones(rows, length, dtype=torch.int64, device=device) for length in (src_len, tgt_len)
    )
    if not packed:
        return Batch(src, src != 0, tgt, tgt.clone(), rows * tgt_len)
    offsets = torch.arange(rows + 1, dtype=torch.int32, device=device)
    tgt_in = tgt.flatten()
    return PackedBatch(
        src.flatten(),
        offsets * src_len,
        src_len,
        tgt_in,
        tgt_in.clone(),
        offsets * tgt_len,
        tgt_len,
        rows * tgt_len,
    )


def pad_rows(rows: Sequence[IdSequence], suffix: int) -> Tensor:
    """Pad rows of ids on the right into a tensor [batch, longest row + 1].

    `suffix` is an id to put after every row.
    """
    return _pad(Rows.from_sequences(rows), suffix=suffix)


def _sides(pairs: Sequence[IdPair]) -> tuple[Rows, Rows]:
    sources, targets = zip(*pairs, strict=True)
    return Rows.from_sequences(sources), Rows.from_sequences(targets)


def _pad(rows: Rows, prefix: int | None = None, suffix: int | None = None) -> Tensor:
    """Pad rows on the right into a tensor [rows, longest row with its prefix and suffix].

    `prefix` and `suffix` are ids to put before and after every row.
    """
    before, after, width = prefix is not None, suffix is not None, int(rows.lens.max())
    padded = np.full((len(rows.lens), before + width + after), PAD_ID, np.int64)
    padded[:, before : before + width][np.arange(width) < rows.lens[:, None]] = rows.ids
    if prefix is not None:
        padded[:, 0] = prefix
    if suffix is not None:
        padded[np.arange(len(padded)), before + rows.lens] = suffix
    return torch.from_numpy(padded)


def _with_inserted(ids: npt.NDArray[Any], places: IntArray, new: int) -> Tensor:
    """Insert the id `new` before each index in `places`."""
    return torch.from_numpy(np.insert(ids.astype(np.int64), places, new))


def _offsets(lens: IntArray) -> Tensor:
    """Return the int32 start offset of each sentence, followed by the total length."""
    return torch.from_numpy(np.append(0, np.cumsum(lens)).astype(np.int32))


def token_buckets(
    src_lens: IntArray, tgt_lens: IntArray, max_tokens: int, tie_break: IntArray | None = None
) -> list[IntArray]:
    """Group pairs of similar length into buckets, and return each bucket's pair indices.

    The padded size of a bucket, rows x longest side, is at most `max_tokens`. A pair that is longer
    than that gets a bucket of its own. Lengths include the end-of-sentence token.

    Pairs are sorted by target length, then by source length, then by `tie_break`. The source
    lengths ascend for even target lengths and descend for odd ones, so that a bucket that spans
    two target lengths contains similar source lengths.
    """
    ties = np.arange(len(src_lens)) if tie_break is None else tie_break
    order = np.lexsort((ties, np.where(tgt_lens % 2, -src_lens, src_lens), tgt_lens))
    longest = np.maximum(src_lens, tgt_lens)[order]
    buckets, start, width = [], 0, 0
    for end, length in enumerate(longest.tolist()):
        width_with = max(width, length)
        if end > start and width_with * (end - start + 1) > max_tokens:
            buckets.append(order[start:end])
            start, width_with = end, length
        width = width_with
    if start < len(order):
        buckets.append(order[start:])
    return buckets
