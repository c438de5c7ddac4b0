"""Training order and prefetching: which pairs go into which update.

The order depends only on the seed, the epoch and the position in the epoch:

  1. The corpus is cut into runs of `RUN` neighbouring pairs, and every epoch shuffles the runs. A
     corpus that fits in one block is cut into single pairs instead.
  2. `block_size` pairs of the shuffled runs form a block. The pairs of a block are shuffled, sorted
     by length and cut into buckets of at most `max_tokens` and `batch_tokens` tokens. The buckets
     are shuffled.
  3. Consecutive buckets make up an update: `grad_accum_steps` buckets, or as many as fit in
     `batch_tokens` target tokens. The last update of an epoch may be smaller.

A shuffle is a stable sort of raw Philox random numbers, with (seed, epoch) as the key and (block,
purpose) as the counter, so it is the same in every version of NumPy. A position is the (epoch,
block, bucket) of the next bucket. Starting at a position means preparing just its block.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mt.config import BatchingConfig
from mt.data.batch import AnyBatch, IdPair, IntArray, collate_rows, pack_rows, token_buckets
from mt.data.store import TokenCache

RUN = 1024
ORDER = 2  # version of the order; in version 1, a bucket could exceed `batch_tokens`


class Position(NamedTuple):
    """A position in the training order: the next bucket to hand out."""

    epoch: int = 0
    block: int = 0
    bucket: int = 0


@dataclass(frozen=True)
class Update:
    """The data of one optimizer update, whose micro-batches are divided among the ranks.

    Rank r of n has the micro-batches r, r + n, r + 2n, ...
    """

    micro_batches: Sequence[AnyBatch]  # the micro-batches of this rank
    after: Position  # the position of the next update
    num_tokens: int  # target tokens of the whole update, over all ranks
    indices: Sequence[IntArray]  # pair indices of every micro-batch, over all ranks

    @classmethod
    def from_batches(cls, micro_batches: Sequence[AnyBatch]) -> "Update":
        """Return an update with the given micro-batches and no position in the training order."""
        return cls(micro_batches, Position(), sum(batch.num_tokens for batch in micro_batches), [])


class TrainLoader:
    """Yields updates from a token cache endlessly, epoch after epoch.

    All ranks see the same updates, but the loader of rank `rank` of `size` builds only the
    micro-batches of its rank.
    """

    def __init__(
        self,
        cache: TokenCache,
        config: BatchingConfig,
        seed: int,
        *,
        grad_accum_steps: int = 1,
        batch_tokens: int | None = None,
        packed: bool = False,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        self.cache, self.config, self.seed = cache, config, seed
        self.grad_accum_steps, self.batch_tokens = grad_accum_steps, batch_tokens
        self.packed, self.rank, self.size = packed, rank, size
        self.position, self.order = Position(), ORDER
        self._run_size = 1 if len(cache) <= config.block_size else RUN
        self._num_runs = -(-len(cache) // self._run_size)
        self._runs_per_block = max(1, config.block_size // self._run_size)
        self._num_blocks = -(-self._num_runs // self._runs_per_block)

    def state_dict(self) -> dict[str, int]:
        """Return the version of the order and the position after the last update handed out.

        Updates that were prefetched but not handed out do not count.
        """
        return {"order": self.order, **self.position._asdict()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position, with the order version it was saved with."""
        self.order = state.get("order", 1)
        self.position = Position(state["epoch"], state["block"], state["bucket"])

    def updates(self) -> Iterator[Update]:
        """Yield updates from the current position on. A background thread prepares them in advance.

        Closing the iterator stops the thread.
        """
        prefetcher = _Prefetcher(self._updates_from(self.position), self.config.prefetch)
        try:
            for update in prefetcher:
                self.position = update.after
                yield update
        finally:
            prefetcher.stop()

    def epoch_updates(self, epoch: int = 0) -> Iterator[list[IntArray]]:
        """For each update in an epoch, yield the pair indices in each micro-batch."""
        for group, _, after in self._groups(Position(epoch)):
            yield group
            if after.epoch != epoch:
                return

    def _updates_from(self, position: Position) -> Iterator[Update]:
        for group, num_tokens, after in self._groups(position):
            yield Update(
                [self._batch(indices) for indices in group[self.rank :: self.size]],
                after,
                num_tokens,
                group,
            )

    def all_micro_batches(self, update: Update) -> Sequence[AnyBatch]:
        """Return the micro-batches of all ranks in an update."""
        if self.size == 1:
            return update.micro_batches
        return [self._batch(indices) for indices in update.indices]

    def _batch(self, indices: IntArray) -> AnyBatch:
        sides = self.cache.rows(indices)
        return pack_rows(*sides) if self.packed else collate_rows(*sides)

    def _groups(self, start: Position) -> Iterator[tuple[list[IntArray], int, Position]]:
        """For each update, yield (pair indices per bucket, target tokens, next position)."""
        group: list[IntArray] = []
        tokens = 0
        for indices, position, after in self._buckets(start):
            num_tokens = int(self.cache.lengths(indices)[1].sum()) + len(indices)
            if group and self.batch_tokens is not None and tokens + num_tokens > self.batch_tokens:
                yield group, tokens, position
                group, tokens = [], 0
            group.append(indices)
            tokens += num_tokens
            full = self.batch_tokens is None and len(group) == self.grad_accum_steps
            if full or after.epoch != position.epoch:
                yield group, tokens, after
                group, tokens = [], 0

    def _buckets(self, position: Position) -> Iterator[tuple[IntArray, Position, Position]]:
        """For each bucket, yield (pair indices, position, next position), epoch after epoch."""
        epoch, first_block, first_bucket = position
        while True:
            run_order = self._run_order(epoch)
            for block in range(first_block, self._num_blocks):
                buckets = self.block_buckets(epoch, block, run_order)
                for bucket in range(first_bucket, len(buckets)):
                    position = Position(epoch, block, bucket)
                    yield buckets[bucket], position, self._following(position, len(buckets))
                first_bucket = 0
            epoch, first_block = epoch + 1, 0

    def _following(self, position: Position, num_buckets: int) -> Position:
        """Return the position after `position`, whose block has `num_buckets` buckets."""
        epoch, block, bucket = position
        if bucket + 1 < num_buckets:
            return Position(epoch, block, bucket + 1)
        if block + 1 < self._num_blocks:
            return Position(epoch, block + 1)
        return Position(epoch + 1)

    def _run_order(self, epoch: int) -> IntArray:
        return _permutation(self._num_runs, self.seed, epoch, 0, 0)

    def block_buckets(self, epoch: int, block: int, run_order: IntArray) -> list[IntArray]:
        """Return the shuffled buckets of a block, each as an array of pair indices."""
        runs = run_order[block * self._runs_per_block : (block + 1) * self._runs_per_block]
        if self._run_size > 1:
            self.cache.read_ahead(
                [
                    (start, min(start + self._run_size, len(self.cache)))
                    for start in (runs * self._run_size).tolist()
                ]
            )
        indices = (runs[:, None] * self._run_size + np.arange(self._run_size)).reshape(-1)
        indices = indices[indices < len(self.cache)]
        src_lens, tgt_lens = self.cache.lengths(indices)
        ties = _permutation(len(indices), self.seed, epoch, block, 1)
        max_tokens = int(self.config.max_tokens)
        if self.order > 1 and self.batch_tokens is not None:
            max_tokens = min(max_tokens, self.batch_tokens)
        buckets = token_buckets(src_lens + 1, tgt_lens + 1, max_tokens, ties)
        return [indices[buckets[i]] for i in _permutation(len(buckets), self.seed, epoch, block, 2)]


class ValidLoader:
    """Yields groups of validation pairs with similar lengths. All iterations are the same."""

    def __init__(self, pairs: Sequence[IdPair], max_tokens: int) -> None:
        src_lens, tgt_lens = (np.array([len(pair[side]) + 1 for pair in pairs]) for side in (0, 1))
        self._groups = [
            [pairs[i] for i in bucket] for bucket in token_buckets(src_lens, tgt_lens, max_tokens)
        ]

    def __iter__(self) -> Iterator[list[IdPair]]:
        return iter(self._groups)


def _permutation(size: int, seed: int, epoch: int, block: int, purpose: int) -> IntArray:
    """Return a random permutation of range(size) that depends only on the arguments.

    `purpose` distinguishes the shuffles of a block: 0 for runs, 1 for pairs, 2 for buckets.
    """
    philox = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, block, purpose], np.uint64)
    )
    return np.argsort(philox.random_raw(size), kind="stable")


class _Prefetcher:
    """Runs an iterator in a background thread, up to `depth` items ahead.

    An exception in the thread is raised again in the loop that reads the items.
    """

    def __init__(self, items: Iterator[Update], depth: int) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._fill, args=(items,), name="mt-loader", daemon=True
        )
        self._thread.start()

    def _fill(self, items: Iterator[Update]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Update]:
        while True:
            item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
