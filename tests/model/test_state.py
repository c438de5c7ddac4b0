"""Compare the trie of cells with a plain cache that keeps keys and values per hypothesis."""

import pytest
import torch

from mt.model.layers import Dropout
from mt.model.state import CachedSelfAttention, DecoderState, LayerCache

HEADS, HEAD_DIM, BEAMS, STEPS = 2, 4, 3, 12


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attend from q [hyps, heads, head_dim] to k and v [hyps, length, heads, head_dim]."""
    weights = torch.einsum("bhd,blhd->bhl", q, k).softmax(dim=-1)
    return torch.einsum("bhl,blhd->bhd", weights, v).flatten(1)


@pytest.mark.parametrize("seed", range(5))
def test_cells_of_a_trie_attend_like_one_cache_per_hypothesis(seed: int) -> None:
    torch.manual_seed(seed)
    sentences = 4
    source = torch.randn(2, sentences, HEADS, HEAD_DIM)
    path = torch.zeros(sentences, 1, 0, dtype=torch.bool)
    state = DecoderState([LayerCache.of(tuple(source), sentences)], None, path)
    keys = values = torch.empty(sentences, 0, HEADS, HEAD_DIM)
    for step in range(STEPS):
        beams = 1 if step == 0 else BEAMS
        if step == 1:  # all hypotheses continue the only existing one
            state.reorder(torch.zeros(sentences, BEAMS, dtype=torch.int64))
            keys, values = (x.repeat_interleave(BEAMS, dim=0) for x in (keys, values))
        q, k, v = torch.randn(3, sentences * beams, HEADS, HEAD_DIM)
        keys, values = (
            torch.cat([old, new[:, None]], dim=1) for old, new in ((keys, k), (values, v))
        )
        attention = CachedSelfAttention(state, *state.advance(beams))
        torch.testing.assert_close(
            attention.attend(q, k, v, 1.0, Dropout(0.0)), plain_attention(q, keys, values)
        )
        if step > 0:
            order = torch.randint(beams, (sentences, beams))
            state.reorder(order)
            rows = (order + torch.arange(sentences)[:, None] * beams).flatten()
            keys, values = keys.index_select(0, rows), values.index_select(0, rows)
        if step == STEPS // 2:  # the first sentence is done
            sentences -= 1
            state.keep(torch.tensor([3, 1, 2]))
            rows = torch.tensor([3, 1, 2]).mul(beams)[:, None] + torch.arange(beams)
            keys, values = keys[rows.flatten()], values[rows.flatten()]
