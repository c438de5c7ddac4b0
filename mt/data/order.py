"""Training order and prefetch: which pairs make up which update, as a function of (seed, epoch,
position) alone.

  1. The corpus is cut into runs of `RUN` neighbours (of 1, where one block holds it all), and each
     epoch puts the runs in a random order.
  2. `block_size` pairs of that order make a block; each block is shuffled, sorted by length and cut
     into token buckets, which are shuffled.
  3. Consecutive buckets make an update: `grad_accum_steps` of them, or as many as `batch_tokens`
     target tokens hold; no bucket has more tokens than that. An epoch's last update closes as it
     is.

Random numbers are raw draws of Philox with (seed, epoch, block) as key and counter, sorted stably:
the same in every version of every library. Position = (epoch, block, bucket) of the next bucket to
hand out; jumping there costs one block.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mt.config import BatchingConfig
from mt.data.batch import AnyBatch, IdPair, IntArray, collate, pack, token_buckets
from mt.data.store import TokenCache

RUN = 1024
ORDER = 2  # version of the order; 1 let a single bucket have more than `batch_tokens`


class Position(NamedTuple):
    """The next micro-batch to hand out."""

    epoch: int = 0
    block: int = 0
    bucket: int = 0


@dataclass(frozen=True)
class Update:
    """One optimizer update: this rank's micro-batches, what the update is as a whole, and where the
    order goes on after it.
    """

    micro_batches: Sequence[AnyBatch]  # rank, rank + size, rank + 2 size, ... of the whole update
    after: Position
    num_tokens: int  # target tokens of the whole update
    indices: Sequence[IntArray]  # pairs of each micro-batch of the whole update

    @classmethod
    def of(cls, micro_batches: Sequence[AnyBatch]) -> "Update":
        """An update of these micro-batches, which belong to no order."""
        return cls(micro_batches, Position(), sum(batch.num_tokens for batch in micro_batches), [])


class TrainLoader:
    """Endless updates from a token cache; epoch follows epoch. Of `size` ranks each makes its own
    share of the same updates.
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
        self._run = 1 if len(cache) <= config.block_size else RUN
        num_runs = -(-len(cache) // self._run)
        self._runs_a_block = max(1, config.block_size // self._run)
        self._num_blocks = -(-num_runs // self._runs_a_block)

    def state_dict(self) -> dict[str, int]:
        """The version of the order, and the position after the last update handed out; what was
        only prefetched does not count.
        """
        return {"order": self.order, **self.position._asdict()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at a position, in the order of the version that it belongs to."""
        self.order = state.get("order", 1)
        self.position = Position(state["epoch"], state["block"], state["bucket"])

    def updates(self) -> Iterator[Update]:
        """Updates from the present position on, prepared by a background thread. Closing the
        iterator ends the thread.
        """
        prefetcher = _Prefetcher(self._updates_from(self.position), self.config.prefetch)
        try:
            for update in prefetcher:
                self.position = update.after
                yield update
        finally:
            prefetcher.stop()

    def epoch_updates(self, epoch: int = 0) -> Iterator[list[IntArray]]:
        """The pair indices of each micro-batch of each update of one epoch."""
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

    def whole(self, update: Update) -> Sequence[AnyBatch]:
        """The micro-batches of an update, those of other ranks included."""
        return (
            update.micro_batches
            if self.size == 1
            else [self._batch(indices) for indices in update.indices]
        )

    def _batch(self, indices: IntArray) -> AnyBatch:
        pairs = [self.cache[i] for i in indices.tolist()]
        return pack(pairs) if self.packed else collate(pairs)

    def _groups(self, position: Position) -> Iterator[tuple[list[IntArray], int, Position]]:
        """(the index arrays of one update, its target tokens, the position after it)."""
        group: list[IntArray] = []
        tokens, before = 0, position
        for indices, here, after in self._buckets(position):
            num_tokens = int(self.cache.lengths(indices)[1].sum()) + len(indices)
            if group and self.batch_tokens is not None and tokens + num_tokens > self.batch_tokens:
                yield group, tokens, here
                group, tokens = [], 0
            group.append(indices)
            tokens += num_tokens
            full = self.batch_tokens is None and len(group) == self.grad_accum_steps
            if full or after.epoch != before.epoch:
                yield group, tokens, after
                group, tokens = [], 0
            before = after

    def _buckets(self, position: Position) -> Iterator[tuple[IntArray, Position, Position]]:
        """(pair indices of a bucket, its position, the position after it), epoch after epoch."""
        epoch, block, bucket = position
        while True:
            order = self._run_order(epoch)
            while block < self._num_blocks:
                buckets = self.block_buckets(epoch, block, order)
                while bucket < len(buckets):
                    here = Position(epoch, block, bucket)
                    after = Position(epoch, block, bucket + 1)
                    if bucket + 1 == len(buckets):
                        after = (
                            Position(epoch, block + 1)
                            if block + 1 < self._num_blocks
                            else Position(epoch + 1)
                        )
                    yield buckets[bucket], here, after
                    bucket += 1
                block, bucket = block + 1, 0
            epoch, block = epoch + 1, 0

    def _run_order(self, epoch: int) -> IntArray:
        return _permutation(-(-len(self.cache) // self._run), self.seed, epoch, 0, 0)

    def block_buckets(self, epoch: int, block: int, run_order: IntArray) -> list[IntArray]:
        """The shuffled buckets of pair indices of one block."""
        runs = run_order[block * self._runs_a_block : (block + 1) * self._runs_a_block]
        if self._run > 1:
            self.cache.expect(
                [
                    (start, min(start + self._run, len(self.cache)))
                    for start in (runs * self._run).tolist()
                ]
            )
        indices = (runs[:, None] * self._run + np.arange(self._run)).reshape(-1)
        indices = indices[indices < len(self.cache)]
        src_lens, tgt_lens = self.cache.lengths(indices)
        ties = _permutation(len(indices), self.seed, epoch, block, 1)
        max_tokens = int(self.config.max_tokens)
        if self.order > 1 and self.batch_tokens is not None:
            max_tokens = min(max_tokens, self.batch_tokens)
        buckets = token_buckets(src_lens + 1, tgt_lens + 1, max_tokens, ties)
        return [indices[buckets[i]] for i in _permutation(len(buckets), self.seed, epoch, block, 2)]


class ValidLoader:
    """Validation pairs in memory, those of similar length together; the same groups each time."""

    def __init__(self, pairs: Sequence[IdPair], max_tokens: int) -> None:
        src_lens, tgt_lens = (np.array([len(pair[side]) + 1 for pair in pairs]) for side in (0, 1))
        self._groups = [
            [pairs[i] for i in bucket] for bucket in token_buckets(src_lens, tgt_lens, max_tokens)
        ]

    def __iter__(self) -> Iterator[list[IdPair]]:
        return iter(self._groups)


def _permutation(size: int, seed: int, epoch: int, block: int, purpose: int) -> IntArray:
    philox = np.random.Philox(
        key=np.array([seed, epoch], np.uint64), counter=np.array([0, 0, block, purpose], np.uint64)
    )
    return np.argsort(philox.random_raw(size), kind="stable")


class _Prefetcher:
    """Runs an iterator in a thread, a few items ahead; an exception there is raised here."""

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
