"""Micro-batches: cutting length-sorted pairs into token buckets, and padding or packing one bucket
into tensors.
"""

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
    """One micro-batch, padded on the right."""

    src: Tensor  # [batch, src_len] ids, end of sentence last
    src_mask: Tensor  # [batch, src_len] True where a source token stands
    tgt_in: Tensor  # [batch, tgt_len] beginning of sentence first
    tgt_out: Tensor  # [batch, tgt_len] end of sentence last; padding is `PAD_ID`
    num_tokens: int  # target tokens, end of sentence included, padding not


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch without padding: its sentences one after the other."""

    src: Tensor  # [source tokens] ids, each sentence with its end
    src_offsets: Tensor  # [batch + 1] int32, where each sentence begins, and the end
    max_src_len: int
    tgt_in: Tensor  # [target tokens] each with its beginning of sentence
    tgt_out: Tensor  # [target tokens] each with its end
    tgt_offsets: Tensor
    max_tgt_len: int
    num_tokens: int  # target tokens


AnyBatch = Batch | PackedBatch
B = TypeVar("B", bound=AnyBatch)


def moved(batch: B, device: torch.device) -> B:
    """The batch on another device, copied while the device goes on computing; itself where it is
    there already.
    """
    if device.type == "cpu":
        return batch
    values = ((field.name, getattr(batch, field.name)) for field in fields(batch))
    there: dict[str, Any] = {
        name: x.pin_memory().to(device, non_blocking=True)
        for name, x in values
        if isinstance(x, Tensor)
    }
    return replace(batch, **there)


def collate(pairs: Sequence[IdPair]) -> Batch:
    """Pad pairs of ids (without special ids) into a `Batch`."""
    src = pad_rows([src for src, _ in pairs], suffix=EOS_ID)
    targets = [tgt for _, tgt in pairs]
    return Batch(
        src=src,
        src_mask=src != PAD_ID,
        tgt_in=pad_rows(targets, prefix=BOS_ID),
        tgt_out=pad_rows(targets, suffix=EOS_ID),
        num_tokens=sum(len(tgt) + 1 for tgt in targets),
    )


def pack(pairs: Sequence[IdPair]) -> PackedBatch:
    """Join pairs of ids (without special ids) into a `PackedBatch`."""
    src, src_offsets, max_src_len = _joined([np.append(src, EOS_ID) for src, _ in pairs])
    tgt_out, tgt_offsets, max_tgt_len = _joined([np.append(tgt, EOS_ID) for _, tgt in pairs])
    tgt_in, _, _ = _joined([np.append(BOS_ID, tgt) for _, tgt in pairs])
    return PackedBatch(
        src, src_offsets, max_src_len, tgt_in, tgt_out, tgt_offsets, max_tgt_len, len(tgt_out)
    )


def pairs_of(batch: AnyBatch) -> list[tuple[list[int], list[int]]]:
    """The pairs of ids that a batch on the CPU was made of, in its order."""
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
    """A micro-batch of `shape` (rows, source width, target width) whose ids mean nothing."""
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


def _joined(rows: list[IntArray]) -> tuple[Tensor, Tensor, int]:
    """(ids, offsets, longest) of rows one after the other."""
    lens = [len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
    return (
        torch.from_numpy(np.concatenate(rows).astype(np.int64)),
        torch.from_numpy(offsets),
        max(lens),
    )


def pad_rows(
    rows: Sequence[IdSequence], prefix: int | None = None, suffix: int | None = None
) -> Tensor:
    """Rows of ids [batch, longest row], with an id before or after each, padded on the right."""
    before, after = int(prefix is not None), int(suffix is not None)
    padded = np.full((len(rows), max(map(len, rows)) + before + after), PAD_ID, np.int64)
    for out, row in zip(padded, rows, strict=True):
        end = before + len(row)
        out[before:end] = row
        if prefix is not None:
            out[0] = prefix
        if suffix is not None:
            out[end] = suffix
    return torch.from_numpy(padded)


def token_buckets(
    src_lens: IntArray, tgt_lens: IntArray, max_tokens: int, tie_break: IntArray | None = None
) -> list[IntArray]:
    """Cut pairs into buckets of similar length with at most `max_tokens` = rows x longest side in
    each (a single row may have more).

    Lengths count the end of sentence. Pairs are sorted by target, then source length, then
    `tie_break`; a bucket holds their positions. Source lengths rise within one target length and
    fall within the next, so that a bucket across the two does not mix short and long.
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
