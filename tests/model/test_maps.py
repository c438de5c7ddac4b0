"""Compare recorded attention weights with those PyTorch computes from the same inputs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mt.decode.alignment import cross_attention
from mt.model.attention import MultiHeadAttention, PaddedAttention, RecordedAttention
from mt.model.layers import Dropout
from mt.model.transformer import Transformer
from mt.report.attention import attention_maps
from tests.model.small import small, sources

pytestmark = pytest.mark.usefixtures("one_thread")


def pytorchs_weights(
    block: MultiHeadAttention, query: Tensor, memory: Tensor, causal: bool
) -> Tensor:
    """Return PyTorch's attention weights [num_heads, tgt_len, src_len].

    `query` is [tgt_len, d_model], and `memory` is [src_len, d_model].
    """
    layers = (block.q_proj, block.k_proj, block.v_proj)
    in_weight, in_bias = (
        torch.cat([layer.weight for layer in layers]),
        torch.cat([layer.bias for layer in layers]),
    )
    mask = torch.ones(len(query), len(memory), dtype=torch.bool).triu(1) if causal else None
    _, weights = F.multi_head_attention_forward(
        query[:, None],
        memory[:, None],
        memory[:, None],
        query.shape[1],
        block.num_heads,
        in_weight,
        in_bias,
        None,
        None,
        False,
        0.0,
        block.out_proj.weight,
        block.out_proj.bias,
        training=False,
        need_weights=True,
        attn_mask=mask,
        average_attn_weights=False,
    )
    assert weights is not None
    return weights[0]


def entering(
    model: Transformer, src: Tensor, tgt_in: Tensor
) -> dict[MultiHeadAttention, tuple[Tensor, Tensor]]:
    """Record the query and memory that enter each attention block during `forward`."""
    inputs: dict[MultiHeadAttention, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, args: inputs.__setitem__(module, args[:2]))
        for module in model.modules()
        if isinstance(module, MultiHeadAttention)
    ]
    model(src[None], None, tgt_in[None])
    for hook in hooks:
        hook.remove()
    return inputs


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_the_maps_are_the_weights_that_pytorch_computes(norm: str) -> None:
    model = small(norm)
    src, tgt_in = sources(7)[0][0], sources(5)[0][0]
    maps, inputs = (
        attention_maps(model, src.tolist(), tgt_in.tolist()),
        entering(model, src, tgt_in),
    )
    blocks = {
        "encoder": [layer.self_attn for layer in model.encoder.layers],
        "decoder": [layer.self_attn for layer in model.decoder.layers],
        "cross": [layer.encoder_attn for layer in model.decoder.layers],
    }
    shapes = {"encoder": (2, 4, 7, 7), "decoder": (3, 4, 5, 5), "cross": (3, 4, 5, 7)}
    for kind, attentions in blocks.items():
        expected = torch.stack(
            [
                pytorchs_weights(block, *inputs[block], causal=kind == "decoder")
                for block in attentions
            ]
        )
        assert expected.shape == shapes[kind]
        assert expected.std() > 0.01  # weights that are all the same would always agree
        torch.testing.assert_close(getattr(maps, kind), expected, rtol=1e-5, atol=1e-6)


def test_rows_sum_to_one_and_nobody_looks_ahead() -> None:
    maps = attention_maps(small().double(), sources(7)[0][0].tolist(), sources(5)[0][0].tolist())
    for weights in (maps.encoder, maps.decoder, maps.cross):
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    assert torch.equal(maps.decoder, maps.decoder.tril())
    assert (maps.decoder[..., torch.ones(5, 5).tril().bool()] > 0).all()


@pytest.mark.parametrize(
    "allowed",
    [
        None,
        torch.ones(1, 4, 6, dtype=torch.bool).tril(),
        torch.arange(6) < torch.tensor([3, 6])[:, None, None],
    ],
    ids=["all", "causal", "padded"],
)
def test_a_watched_mask_attends_as_the_padded_one_does(allowed: Tensor | None) -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(2 * length, 3, 4) for length in (4, 6, 6))
    padded, seen, no_dropout = PaddedAttention.of(2, allowed), [], Dropout(0.0)
    watched = RecordedAttention(padded, seen.append).attend(q, k, v, 0.5, no_dropout)
    torch.testing.assert_close(
        watched, padded.attend(q, k, v, 0.5, no_dropout), rtol=1e-5, atol=1e-6
    )
    assert [weights.shape for weights in seen] == [(2, 3, 4, 6)]


@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_hidden_states_under_watched_masks_are_those_of_the_model(norm: str) -> None:
    model = small(norm)
    (src, src_mask), (tgt_in, _) = sources(9, 2, 5), sources(3, 8, 1)
    source, causal = (
        PaddedAttention.of(3, src_mask[:, None]),
        PaddedAttention.of(3, torch.ones(1, 8, 8, dtype=torch.bool).tril()),
    )
    seen: list[Tensor] = []
    hidden = model.attending(
        src, tgt_in, *(RecordedAttention(each, seen.append) for each in (source, causal, source))
    )
    torch.testing.assert_close(hidden, model(src, src_mask, tgt_in), rtol=1e-5, atol=1e-5)
    assert len(seen) == 2 + 2 * 3


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_cross_attention_of_a_padded_batch_is_that_of_each_pair_alone(layer: int) -> None:
    model = small()
    (src, src_mask), (tgt_in, tgt_mask) = sources(9, 2, 5), sources(3, 8, 1)
    together = cross_attention(model, src, src_mask, tgt_in, layer)
    assert together.shape == (3, 8, 9)
    for i in range(3):
        alone = (
            attention_maps(model, src[i, src_mask[i]].tolist(), tgt_in[i, tgt_mask[i]].tolist())
            .cross[layer]
            .mean(dim=0)
        )
        torch.testing.assert_close(
            together[i, tgt_mask[i]][:, src_mask[i]], alone, rtol=1e-5, atol=1e-6
        )
        assert not together[i, :, ~src_mask[i]].any()
