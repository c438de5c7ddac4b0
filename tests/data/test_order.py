"""Test `mt.data.order`: every epoch has each pair once, the order depends only on the seed, and
training resumes exactly from a saved state.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest

from mt.config import BatchingConfig, FilterConfig
from mt.data import order as order_module
from mt.data.batch import collate
from mt.data.order import ORDER, Position, TrainLoader, Update, ValidLoader
from mt.data.sources import SentencePair
from mt.data.store import TokenCache, build_cache
from mt.data.tokenizer import Tokenizer
from tests.data.conftest import pair_ids

NUM_PAIRS = 150
FIRST_ID = 4
RUN = 8
LAYOUTS = {
    "one block": 1000,
    "exactly one block": NUM_PAIRS,
    "blocks": 40,
    "blocks smaller than a run": 5,
}
UPDATES: list[dict[str, int]] = [
    {},
    {"grad_accum_steps": 3},
    {"batch_tokens": 90},
    {"batch_tokens": 1},
]

MakeLoader = Callable[..., TrainLoader]
Group = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory, id_tokenizer: Callable[[int], Tokenizer]
) -> TokenCache:
    """Build a cache in which both sides of pair i repeat the id i + `FIRST_ID` a few times."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 13, (NUM_PAIRS, 2)).tolist()
    pairs = [
        SentencePair(f"{i + FIRST_ID} " * src, f"{i + FIRST_ID} " * tgt)
        for i, (src, tgt) in enumerate(lengths)
    ]
    folder = tmp_path_factory.mktemp("cache") / "tokens"
    return build_cache(pairs, id_tokenizer(1000), FilterConfig(), folder, {})[0]


@pytest.fixture
def make(cache: TokenCache, monkeypatch: pytest.MonkeyPatch) -> MakeLoader:
    """Return a function that makes loaders over the cache. Their runs are short."""
    monkeypatch.setattr(order_module, "RUN", RUN)

    def make(
        block_size: int = 40, seed: int = 1, prefetch: int = 4, source: Any = cache, **options: int
    ) -> TrainLoader:
        config = BatchingConfig(max_tokens=60, block_size=block_size, prefetch=prefetch)
        return TrainLoader(source, config, seed, **options)

    return make


def contents(update: Update) -> Group:
    """Return the pair indices of each micro-batch."""
    return tuple(tuple((batch.src[:, 0] - FIRST_ID).tolist()) for batch in update.micro_batches)


@contextmanager
def running(loader: TrainLoader) -> Iterator[Iterator[Update]]:
    with closing(loader.updates()) as updates:  # type: ignore[type-var]
        yield updates


def take(loader: TrainLoader, count: int) -> list[Group]:
    with running(loader) as updates:
        return [contents(update) for update in islice(updates, count)]


def epochs(loader: TrainLoader, count: int) -> list[list[Update]]:
    """Return the updates of the first `count` epochs, as one list per epoch."""
    per_epoch: list[list[Update]] = [[]]
    with running(loader) as updates:
        for update in updates:
            per_epoch[-1].append(update)
            if update.after.epoch == len(per_epoch):
                if len(per_epoch) == count:
                    return per_epoch
                per_epoch.append([])
    raise AssertionError("updates never end")


def pairs_of(updates: list[Update]) -> list[int]:
    return [pair for update in updates for batch in contents(update) for pair in batch]


# The order


@pytest.mark.parametrize("options", UPDATES, ids=str)
@pytest.mark.parametrize("block_size", LAYOUTS.values(), ids=LAYOUTS)
def test_every_epoch_has_each_pair_once_and_no_update_spans_two_epochs(
    make: MakeLoader, block_size: int, options: dict[str, int]
) -> None:
    for updates in epochs(make(block_size, **options), 3):
        assert sorted(pairs_of(updates)) == list(range(NUM_PAIRS))


def test_batches_hold_the_pairs_of_the_cache(make: MakeLoader, cache: TokenCache) -> None:
    for update in epochs(make(), 1)[0]:
        for batch, indices in zip(update.micro_batches, contents(update), strict=True):
            for row, index in enumerate(indices):
                src, tgt = pair_ids(cache, index)
                assert batch.src[row][batch.src_mask[row]].tolist()[:-1] == src
                assert batch.tgt_out[row].tolist()[: len(tgt)] == tgt
            assert batch.src.numel() <= 60
            assert batch.tgt_out.numel() <= 60


def test_the_order_depends_on_seed_and_epoch(make: MakeLoader) -> None:
    first, second = (pairs_of(updates) for updates in epochs(make(), 2))
    other = pairs_of(epochs(make(seed=2), 1)[0])
    assert len({tuple(first), tuple(second), tuple(other), tuple(range(NUM_PAIRS))}) == 4
    assert [pairs_of(updates) for updates in epochs(make(), 2)] == [first, second]


def test_the_order_depends_on_nothing_else(make: MakeLoader) -> None:
    batches = [
        batch for updates in epochs(make(), 2) for update in updates for batch in contents(update)
    ]
    for options in [*UPDATES, {"prefetch": 1}]:
        if options.get("batch_tokens", 1000) < 64:
            continue  # such a small update also makes the buckets smaller
        again = [
            batch
            for updates in epochs(make(**options), 2)
            for update in updates
            for batch in contents(update)
        ]
        assert again == batches, options


def test_an_epoch_can_be_reached_without_the_ones_before(make: MakeLoader) -> None:
    expected = epochs(make(), 3)[2]
    loader = make()
    loader.load_state_dict({"epoch": 2, "block": 0, "bucket": 0})
    assert take(loader, len(expected)) == [contents(update) for update in expected]


# An independent implementation of the order, written only from its description, which also
# generates its own random numbers

MASK = (1 << 64) - 1


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Return the four random numbers of Philox4x64-10 for this counter (Salmon et al. 2011)."""
    c = [counter >> 64 * word & MASK for word in range(4)]
    k0, k1 = key
    for _ in range(10):
        product0, product1 = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [
            product1 >> 64 ^ c[1] ^ k0,
            product1 & MASK,
            product0 >> 64 ^ c[3] ^ k1,
            product0 & MASK,
        ]
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
    return c


def permutation(size: int, seed: int, epoch: int, block: int, purpose: int) -> list[int]:
    start = (block << 128) + (purpose << 192)  # NumPy increments the counter before each draw
    draws = [
        number
        for step in range(-(-size // 4))
        for number in philox((seed, epoch), start + step + 1)
    ]
    return sorted(range(size), key=lambda i: draws[i])


def described_order(
    cache: TokenCache, seed: int, epoch: int, block_size: int, max_tokens: int
) -> list[tuple[int, ...]]:
    run = 1 if len(cache) <= block_size else RUN
    runs = [range(start, min(start + run, len(cache))) for start in range(0, len(cache), run)]
    shuffled = [runs[i] for i in permutation(len(runs), seed, epoch, 0, 0)]
    runs_per_block = max(1, block_size // run)
    result = []
    for block, start in enumerate(range(0, len(shuffled), runs_per_block)):
        indices = [i for part in shuffled[start : start + runs_per_block] for i in part]
        buckets = described_buckets(
            cache, indices, permutation(len(indices), seed, epoch, block, 1), max_tokens
        )
        result += [buckets[i] for i in permutation(len(buckets), seed, epoch, block, 2)]
    return result


def described_buckets(
    cache: TokenCache, indices: list[int], ties: list[int], max_tokens: int
) -> list[tuple[int, ...]]:
    pairs = {i: pair_ids(cache, i) for i in indices}
    lengths = {i: (len(src) + 1, len(tgt) + 1) for i, (src, tgt) in pairs.items()}
    rank = dict(zip(indices, ties, strict=True))

    def by_length(i: int) -> tuple[int, int, int]:
        src, tgt = lengths[i]
        return tgt, -src if tgt % 2 else src, rank[i]

    buckets: list[tuple[int, ...]] = [()]
    for i in sorted(indices, key=by_length):
        grown = (*buckets[-1], i)
        if len(grown) == 1 or len(grown) * max(max(lengths[j]) for j in grown) <= max_tokens:
            buckets[-1] = grown
        else:
            buckets.append((i,))
    return buckets


def test_our_philox_gives_the_published_numbers() -> None:
    # From Random123's file kat_vectors, which calls this generator philox4x64 10.
    assert philox((0, 0), 0) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize(
    ("seed", "epoch", "block", "purpose"),
    [(0, 0, 0, 0), (1, 0, 0, 1), (2**31 - 1, 7, 123_456, 2), (5, 10**6, 0, 0)],
)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 200])
def test_permutations_are_sorted_philox_numbers(
    size: int, seed: int, epoch: int, block: int, purpose: int
) -> None:
    actual = order_module._permutation(size, seed, epoch, block, purpose).tolist()
    assert actual == permutation(size, seed, epoch, block, purpose)


@pytest.mark.parametrize("seed", [1, 77])
@pytest.mark.parametrize("block_size", LAYOUTS.values(), ids=LAYOUTS)
def test_the_order_is_the_described_one(
    make: MakeLoader, cache: TokenCache, block_size: int, seed: int
) -> None:
    for epoch, updates in enumerate(epochs(make(block_size, seed), 2)):
        batches = [batch for update in updates for batch in contents(update)]
        assert batches == described_order(cache, seed, epoch, block_size, 60)


# Updates


def test_every_update_but_the_last_has_grad_accum_steps_micro_batches(make: MakeLoader) -> None:
    for updates in epochs(make(grad_accum_steps=3), 2):
        sizes = [len(update.micro_batches) for update in updates]
        assert set(sizes[:-1]) == {3}
        assert 1 <= sizes[-1] <= 3


@pytest.mark.parametrize("batch_tokens", [1, 40, 90, 200, 10**9])
def test_an_update_holds_as_many_batches_as_its_tokens_allow(
    make: MakeLoader, batch_tokens: int
) -> None:
    for updates in epochs(make(batch_tokens=batch_tokens), 2):
        for update in updates:
            assert update.num_tokens <= batch_tokens or [
                len(batch) for batch in contents(update)
            ] == [1]
        for update, following in pairwise(updates):
            assert update.num_tokens + following.micro_batches[0].num_tokens > batch_tokens
    assert batch_tokens < 10**9 or len(updates) == 1


def test_a_state_of_order_version_1_keeps_the_larger_buckets(make: MakeLoader) -> None:
    old = make(batch_tokens=40)
    old.load_state_dict({"epoch": 0, "block": 0, "bucket": 1})
    assert old.state_dict()["order"] == 1
    bounded, unbounded = make(batch_tokens=40), make()
    runs = [
        loader.block_buckets(0, 0, loader._run_order(0)) for loader in (old, unbounded, bounded)
    ]
    assert [bucket.tolist() for bucket in runs[0]] == [bucket.tolist() for bucket in runs[1]]
    assert len(runs[2]) > len(runs[0])


# State


@pytest.mark.parametrize("options", UPDATES[:3], ids=str)
@pytest.mark.parametrize("block_size", [1000, 40], ids=["one block", "blocks"])
def test_a_new_loader_can_continue_exactly_after_every_update(
    make: MakeLoader, block_size: int, options: dict[str, int]
) -> None:
    states, whole = [make(block_size, **options).state_dict()], []
    loader = make(block_size, **options)
    length = sum(map(len, epochs(make(block_size, **options), 2)))
    with running(loader) as updates:
        for update in islice(updates, length + 4):
            whole.append(contents(update))
            states.append(loader.state_dict())
    for step, state in enumerate(states[: length + 1]):
        fresh = make(block_size, **options)
        fresh.load_state_dict(state)
        assert fresh.state_dict() == state
        # Skip the background thread, which would make this test slow.
        following = [contents(update) for update in islice(fresh._updates_from(fresh.position), 4)]
        assert following == whole[step : step + 4], step


@pytest.mark.parametrize("options", UPDATES[:3], ids=str)
def test_resuming_with_the_background_thread_gives_the_same_updates(
    make: MakeLoader, options: dict[str, int]
) -> None:
    whole = take(make(**options), 12)
    loader = make(**options)
    resumed: list[Group] = []
    for count in (1, 4, 2, 5):
        resumed += take(loader, count)
        state = loader.state_dict()
        loader = make(**options)
        loader.load_state_dict(state)
    assert resumed == whole


class CountingCache:
    """Counts the pairs read from a token cache, and raises an error after `fail_after` pairs."""

    def __init__(self, cache: TokenCache, fail_after: int | None = None) -> None:
        self.cache, self.fail_after, self.num_read = cache, fail_after, 0

    def __len__(self) -> int:
        return len(self.cache)

    def read_ahead(self, runs: Any) -> None:
        """Do nothing."""

    def lengths(self, indices: Any) -> Any:
        return self.cache.lengths(indices)

    def rows(self, indices: Any) -> Any:
        self.num_read += len(indices)
        if self.fail_after is not None and self.num_read > self.fail_after:
            raise OSError("the disk is gone")
        return self.cache.rows(indices)


def test_prefetched_updates_do_not_count_in_the_state(make: MakeLoader, cache: TokenCache) -> None:
    counting = CountingCache(cache)
    loader = make(prefetch=3, source=counting)
    with running(loader) as updates:
        update = next(updates)
        deadline = time.monotonic() + 10
        while counting.num_read <= sum(map(len, contents(update))) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert counting.num_read > sum(map(len, contents(update)))
        assert loader.position == update.after
    assert loader.position == update.after == Position(0, 0, 1)
    assert loader.state_dict() == {"order": ORDER, **update.after._asdict()}


def test_no_more_than_prefetch_updates_are_queued(make: MakeLoader, cache: TokenCache) -> None:
    counting = CountingCache(cache)
    with running(make(prefetch=2, source=counting)) as updates:
        next(updates)
        time.sleep(0.3)
        # One update was handed out, two are queued, and one waits to be queued.
        expected = [len(batch) for group in take(make(), 4) for batch in group]
        assert counting.num_read == sum(expected)


# The thread


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mt-loader"]


def test_an_error_in_the_thread_is_raised_after_the_updates_before_it(
    make: MakeLoader, cache: TokenCache
) -> None:
    sizes = [len(batch) for group in take(make(), 3) for batch in group]
    loader = make(source=CountingCache(cache, fail_after=sum(sizes)))
    updates = loader.updates()
    for _ in sizes:
        next(updates)
    with pytest.raises(OSError, match="the disk is gone"):
        next(updates)
    assert loader_threads() == []
    assert loader.position == Position(0, 0, 3)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_the_iterator_stops_its_thread(make: MakeLoader, taken: int) -> None:
    updates = make(prefetch=1).updates()
    for _ in range(taken):
        next(updates)
    assert len(loader_threads()) == min(taken, 1)
    updates.close()  # type: ignore[attr-defined]
    assert loader_threads() == []


# Validation


def test_validation_batches_hold_every_pair_once_and_are_the_same_each_time() -> None:
    rng = np.random.default_rng(5)
    pairs = [
        ([FIRST_ID + i] * src, [FIRST_ID + i] * tgt)
        for i, (src, tgt) in enumerate(rng.integers(0, 9, (50, 2)).tolist())
    ]

    loader = ValidLoader(pairs, 40)
    first, second = list(loader), list(loader)
    assert first == second
    assert sorted(pair for group in first for pair in group) == sorted(pairs)
    batches = [collate(group) for group in first]
    assert all(batch.src.numel() <= 40 and batch.tgt_out.numel() <= 40 for batch in batches)
