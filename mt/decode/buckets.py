"""Pairs of ids through a model in batches of similar lengths, shared among the worker processes."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from mt.data.batch import token_buckets
from mt.runtime.sharing import SharedWork
from mt.runtime.workers import Workers

T = TypeVar("T")
R = TypeVar("R")


def map_in_buckets(
    workers: Workers,
    work: Callable[[Sequence[T]], list[R]] | SharedWork[Sequence[T], list[R]],
    items: Sequence[T],
    ids: Sequence[tuple[list[int], list[int]]],
    max_tokens: int,
) -> list[R]:
    """`work` of all `items`, in order; `ids` are their source and target, without end of sentence.

    A batch has at most `max_tokens` = rows x longest side.
    """
    src_lens, tgt_lens = (np.array([len(pair[side]) + 1 for pair in ids]) for side in (0, 1))
    buckets = token_buckets(src_lens, tgt_lens, max_tokens)
    found: dict[int, R] = {}
    parts: list[Sequence[T]] = [[items[i] for i in bucket] for bucket in buckets]
    with contextlib.closing(workers.map(work, parts)) as results:
        for bucket, done in zip(buckets, results, strict=True):
            found.update(zip(bucket.tolist(), done, strict=True))
    return [found[i] for i in range(len(items))]
