"""Tests of `mt.data.batching`: the layout of a padded batch, and buckets that hold every pair once within their bound."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt.data.batching import IntArray, collate, pad_rows, token_buckets
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID

PAIRS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=80)
IDS = st.lists(st.integers(4, 99), max_size=6)


def arrays(pairs: list[tuple[int, int]]) -> tuple[IntArray, IntArray]:
    src, tgt = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    return src, tgt


def test_a_batch_looks_like_this() -> None:
    batch = collate([([7, 8, 9], [5]), ([6], [4, 4])])
    assert batch.src.tolist() == [[7, 8, 9, EOS_ID], [6, EOS_ID, PAD_ID, PAD_ID]]
    assert batch.src_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.tgt_in.tolist() == [[BOS_ID, 5, PAD_ID], [BOS_ID, 4, 4]]
    assert batch.tgt_out.tolist() == [[5, EOS_ID, PAD_ID], [4, 4, EOS_ID]]
    assert batch.num_tokens == 5


@given(st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8))
def test_a_batch_can_be_taken_apart_again(pairs: list[tuple[list[int], list[int]]]) -> None:
    batch = collate([(np.array(src, np.uint16), np.array(tgt, np.uint16)) for src, tgt in pairs])
    assert {batch.src.dtype, batch.tgt_in.dtype, batch.tgt_out.dtype} == {torch.int64}
    for row, (src, tgt) in enumerate(pairs):
        assert batch.src[row][batch.src_mask[row]].tolist() == [*src, EOS_ID]
        kept = batch.tgt_out[row] != PAD_ID
        assert batch.tgt_out[row][kept].tolist() == [*tgt, EOS_ID]
        assert batch.tgt_in[row][kept].tolist() == [BOS_ID, *tgt]
    for mask in (batch.src_mask, batch.tgt_out != PAD_ID):  # padding stands on the right, and no column is all padding
        assert torch.equal(mask, mask.sort(dim=1, descending=True).values)
        assert mask.any(dim=0).all()
    assert torch.equal(batch.tgt_in != PAD_ID, batch.tgt_out != PAD_ID)
    assert batch.num_tokens == int((batch.tgt_out != PAD_ID).sum())


def test_rows_are_padded_with_and_without_special_ids() -> None:
    assert pad_rows([[5, 6], [7]]).tolist() == [[5, 6], [7, PAD_ID]]
    assert pad_rows([[], [7]], prefix=BOS_ID, suffix=EOS_ID).tolist() == [[BOS_ID, EOS_ID, PAD_ID], [BOS_ID, 7, EOS_ID]]


def test_moving_a_batch_keeps_every_field() -> None:
    batch = collate([([7, 8], [5])])
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert moved.num_tokens == batch.num_tokens
    assert {moved.src.device.type, moved.src_mask.device.type, moved.tgt_in.device.type, moved.tgt_out.device.type} == {"meta"}


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_buckets_hold_every_pair_once_within_their_bound(pairs: list[tuple[int, int]], max_tokens: int) -> None:
    buckets = token_buckets(*arrays(pairs), max_tokens)
    assert sorted(np.concatenate([*buckets, np.array([], np.int64)]).tolist()) == list(range(len(pairs)))
    for bucket in buckets:
        assert len(bucket) >= 1
        longest = max(max(pairs[i]) for i in bucket)
        assert len(bucket) == 1 or len(bucket) * longest <= max_tokens


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_no_bucket_could_have_taken_the_next_pair(pairs: list[tuple[int, int]], max_tokens: int) -> None:
    buckets = token_buckets(*arrays(pairs), max_tokens)
    for bucket, following in pairwise(buckets):
        longest = max(max(pairs[i]) for i in [*bucket, following[0]])
        assert (len(bucket) + 1) * longest > max_tokens


@given(pairs=PAIRS, max_tokens=st.integers(1, 120))
def test_target_lengths_rise_from_bucket_to_bucket(pairs: list[tuple[int, int]], max_tokens: int) -> None:
    targets = [pairs[i][1] for bucket in token_buckets(*arrays(pairs), max_tokens) for i in bucket]
    assert targets == sorted(targets)


@given(pairs=PAIRS, data=st.data())
def test_ties_alone_decide_between_pairs_of_equal_lengths(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
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
    places = sum(len(bucket) * max(int(src[bucket].max()), int(tgt[bucket].max())) for bucket in buckets)
    assert int(np.maximum(src, tgt).sum()) / places > 0.85
