"""Test `mt.data.batch`: padded and packed batches have the right layout, and token buckets hold
every pair once and never exceed their maximum size.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt.config import BatchingConfig, FilterConfig
from mt.data.batch import (
    AnyBatch,
    Batch,
    IntArray,
    PackedBatch,
    collate,
    pack,
    pad_rows,
    to_device,
    token_buckets,
)
from mt.data.order import Position, TrainLoader
from mt.data.sources import SentencePair
from mt.data.store import TokenCache, build_cache
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, Tokenizer

PAIRS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=80)
IDS = st.lists(st.integers(4, 99), max_size=6)


def arrays(pairs: list[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    src, tgt = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    return src, tgt


def test_collate_pads_on_the_right_and_adds_special_ids() -> None:
    batch = collate([([7, 8, 9], [5]), ([6], [4, 4])])
    assert batch.src.tolist() == [[7, 8, 9, EOS_ID], [6, EOS_ID, PAD_ID, PAD_ID]]
    assert batch.src_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.tgt_in.tolist() == [[BOS_ID, 5, PAD_ID], [BOS_ID, 4, 4]]
    assert batch.tgt_out.tolist() == [[5, EOS_ID, PAD_ID], [4, 4, EOS_ID]]
    assert batch.num_tokens == 5


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8))
def test_the_pairs_can_be_read_back_from_a_batch(pairs: list[tuple[list[int], list[int]]]) -> None:
    batch = collate([(np.array(src, np.uint16), np.array(tgt, np.uint16)) for src, tgt in pairs])
    assert {batch.src.dtype, batch.tgt_in.dtype, batch.tgt_out.dtype} == {torch.int64}
    for row, (src, tgt) in enumerate(pairs):
        assert batch.src[row][batch.src_mask[row]].tolist() == [*src, EOS_ID]
        kept = batch.tgt_out[row] != PAD_ID
        assert batch.tgt_out[row][kept].tolist() == [*tgt, EOS_ID]
        assert batch.tgt_in[row][kept].tolist() == [BOS_ID, *tgt]
    # Padding is on the right, and no column consists only of padding.
    for mask in (batch.src_mask, batch.tgt_out != PAD_ID):
        assert torch.equal(mask, mask.sort(dim=1, descending=True).values)
        assert mask.any(dim=0).all()
    assert torch.equal(batch.tgt_in != PAD_ID, batch.tgt_out != PAD_ID)
    assert batch.num_tokens == int((batch.tgt_out != PAD_ID).sum())


def test_rows_are_padded_and_end_with_the_suffix() -> None:
    rows = [[5, 6], [7], []]
    assert pad_rows(rows, suffix=EOS_ID).tolist() == [
        [5, 6, EOS_ID],
        [7, EOS_ID, PAD_ID],
        [EOS_ID, PAD_ID, PAD_ID],
    ]


def test_pack_concatenates_sentences_and_adds_special_ids() -> None:
    batch = pack([([7, 8, 9], [5]), ([6], [4, 4])])
    assert batch.src.tolist() == [7, 8, 9, EOS_ID, 6, EOS_ID]
    assert batch.src_offsets.tolist() == [0, 4, 6]
    assert batch.tgt_in.tolist() == [BOS_ID, 5, BOS_ID, 4, 4]
    assert batch.tgt_out.tolist() == [5, EOS_ID, 4, 4, EOS_ID]
    assert batch.tgt_offsets.tolist() == [0, 2, 5]
    assert (batch.max_src_len, batch.max_tgt_len, batch.num_tokens) == (4, 3, 5)
    assert {batch.src.dtype, batch.tgt_in.dtype, batch.tgt_out.dtype} == {torch.int64}
    # Flash attention requires int32.
    assert {batch.src_offsets.dtype, batch.tgt_offsets.dtype} == {torch.int32}


Rows = tuple[list[list[int]], list[list[int]], list[list[int]]]


def rows(batch: AnyBatch) -> Rows:
    """Return the ids of each sentence in a batch: (src, tgt_in, tgt_out)."""
    if isinstance(batch, Batch):
        masks = batch.src_mask, batch.tgt_out != PAD_ID, batch.tgt_out != PAD_ID
        src, tgt_in, tgt_out = (
            [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
            for ids, mask in zip((batch.src, batch.tgt_in, batch.tgt_out), masks, strict=True)
        )
        return src, tgt_in, tgt_out
    cuts = batch.src_offsets, batch.tgt_offsets, batch.tgt_offsets
    src, tgt_in, tgt_out = (
        [ids[a:b].tolist() for a, b in pairwise(offsets.tolist())]
        for ids, offsets in zip((batch.src, batch.tgt_in, batch.tgt_out), cuts, strict=True)
    )
    return src, tgt_in, tgt_out


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8))
def test_packed_and_padded_batches_hold_the_same_sentences(
    pairs: list[tuple[list[int], list[int]]],
) -> None:
    arrays = [(np.array(src, np.uint16), np.array(tgt, np.uint16)) for src, tgt in pairs]
    packed, padded = pack(arrays), collate(arrays)
    assert rows(packed) == rows(padded)
    assert rows(pack(pairs)) == rows(packed)  # lists work as well as arrays
    assert (packed.max_src_len, packed.max_tgt_len) == (padded.src.shape[1], padded.tgt_in.shape[1])
    assert packed.num_tokens == padded.num_tokens == len(packed.tgt_out)
    for ids, offsets in ((packed.src, packed.src_offsets), (packed.tgt_in, packed.tgt_offsets)):
        assert int(offsets[-1]) == len(ids)  # the offsets cover all ids
        assert not (ids == PAD_ID).any()


@pytest.mark.parametrize("make", [collate, pack])
def test_moving_a_batch_keeps_every_field(
    make: Callable[..., AnyBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use the `meta` device and no pinned memory, so that the test needs no GPU."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    batch = make([([7, 8], [5]), ([9], [4, 4])])
    copy = to_device(batch, torch.device("meta"))
    assert type(copy) is type(batch)
    for name, value in vars(batch).items():
        copied = getattr(copy, name)
        if isinstance(value, torch.Tensor):
            assert (copied.device.type, copied.shape, copied.dtype) == (
                "meta",
                value.shape,
                value.dtype,
            )
        else:
            assert copied == value


@pytest.mark.parametrize("make", [collate, pack])
def test_a_batch_that_is_on_its_device_is_not_copied(make: Callable[..., AnyBatch]) -> None:
    batch = make([([7, 8], [5])])
    assert to_device(batch, torch.device("cpu")) is batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [collate, pack])
def test_copying_a_batch_to_the_gpu_keeps_all_values(make: Callable[..., AnyBatch]) -> None:
    batch = make([([7, 8], [5]), ([9], [4, 4])])
    copy = to_device(batch, torch.device("cuda"))
    for name, value in vars(batch).items():
        copied = getattr(copy, name)
        assert (
            torch.equal(copied.cpu(), value) if isinstance(value, torch.Tensor) else copied == value
        )
    assert copy.src.device.type == "cuda"


@pytest.fixture(scope="module")
def cache(
    tmp_path_factory: pytest.TempPathFactory, id_tokenizer: Callable[[int], Tokenizer]
) -> TokenCache:
    """Build a token cache of 90 pairs with random ids and lengths."""
    rng = np.random.default_rng(3)
    sides = [
        [" ".join(map(str, rng.integers(4, 1000, rng.integers(1, 13)))) for _ in range(90)]
        for _ in range(2)
    ]
    folder: Path = tmp_path_factory.mktemp("cache") / "tokens"
    return build_cache(
        [SentencePair(*pair) for pair in zip(*sides, strict=True)],
        id_tokenizer(1000),
        FilterConfig(),
        folder,
        {},
    )[0]


@pytest.mark.parametrize("grouping", [{}, {"grad_accum_steps": 3}, {"batch_tokens": 90}])
def test_a_packed_loader_gives_the_same_pairs_in_the_same_order(
    grouping: dict[str, int], cache: TokenCache
) -> None:
    contents: dict[bool, list[tuple[list[Rows], Position, int]]] = {}
    for packed in (False, True):
        loader = TrainLoader(
            cache, BatchingConfig(max_tokens=60, block_size=40), 1, packed=packed, **grouping
        )
        with closing(loader.updates()) as updates:  # type: ignore[type-var]
            taken = list(islice(updates, 40))
        batches: Sequence[AnyBatch] = [batch for update in taken for batch in update.micro_batches]
        assert {type(batch) for batch in batches} == {PackedBatch if packed else Batch}
        contents[packed] = [
            ([rows(batch) for batch in update.micro_batches], update.after, update.num_tokens)
            for update in taken
        ]
    assert contents[True] == contents[False]
    assert contents[True][-1][1].epoch >= 1  # the updates cover more than one epoch


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_buckets_hold_every_pair_once_and_keep_to_their_maximum_size(
    pairs: list[tuple[int, int]], max_tokens: int
) -> None:
    buckets = token_buckets(*arrays(pairs), max_tokens)
    assert sorted(np.concatenate([*buckets, np.array([], np.int64)]).tolist()) == list(
        range(len(pairs))
    )
    for bucket in buckets:
        assert len(bucket) >= 1
        longest = max(max(pairs[i]) for i in bucket)
        assert len(bucket) == 1 or len(bucket) * longest <= max_tokens


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_the_next_pair_would_not_fit_into_a_bucket(
    pairs: list[tuple[int, int]], max_tokens: int
) -> None:
    buckets = token_buckets(*arrays(pairs), max_tokens)
    for bucket, following in pairwise(buckets):
        longest = max(max(pairs[i]) for i in [*bucket, following[0]])
        assert (len(bucket) + 1) * longest > max_tokens


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_target_lengths_rise_from_bucket_to_bucket(
    pairs: list[tuple[int, int]], max_tokens: int
) -> None:
    targets = [pairs[i][1] for bucket in token_buckets(*arrays(pairs), max_tokens) for i in bucket]
    assert targets == sorted(targets)


@given(pairs=PAIRS, data=st.data())
def test_pairs_of_equal_lengths_are_ordered_by_the_tie_break(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    ties = np.array(data.draw(st.permutations(range(len(pairs)))), np.int64)
    order = [i for bucket in token_buckets(*arrays(pairs), 50, ties) for i in bucket.tolist()]
    for a, b in pairwise(order):
        assert pairs[a] != pairs[b] or ties[a] < ties[b]


@pytest.mark.parametrize("max_tokens", [64, 256, 1024])
def test_sorting_by_length_wastes_little_on_padding(max_tokens: int) -> None:
    rng = np.random.default_rng(1)
    src = rng.integers(2, 30, 5000)
    tgt = np.clip(src + rng.integers(-3, 4, 5000), 1, None)
    buckets = token_buckets(src, tgt, max_tokens)
    padded_size = sum(
        len(bucket) * max(int(src[bucket].max()), int(tgt[bucket].max())) for bucket in buckets
    )
    assert int(np.maximum(src, tgt).sum()) / padded_size > 0.85
