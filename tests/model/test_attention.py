"""Compare attention with its formula, written out position by position, and with PyTorch's."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.model.attention import MultiHeadAttention, PaddedAttention

D_MODEL, NUM_HEADS = 12, 3
HEAD_DIM = D_MODEL // NUM_HEADS


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(1)


def attention(dropout: float = 0.0) -> MultiHeadAttention:
    """Build a float64 block with random biases, so that forgetting one changes the result."""
    block = MultiHeadAttention(D_MODEL, NUM_HEADS, dropout).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.5)
    return block


def attend(
    block: MultiHeadAttention, query: Tensor, memory: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """Run the block on padded batches [batch, length, d_model]; see `PaddedAttention.of`."""
    batch, tgt_len, d_model = query.shape
    flat = query.transpose(0, 1).reshape(-1, d_model)
    source = flat if memory is query else memory.transpose(0, 1).reshape(-1, d_model)
    return (
        block(flat, source, PaddedAttention.of(batch, allowed))
        .view(tgt_len, batch, d_model)
        .transpose(0, 1)
    )


def written_out(
    block: MultiHeadAttention, query: Tensor, memory: Tensor, allowed: Tensor
) -> Tensor:
    """Compute the formula for every row, position and head in plain Python.

    `allowed` is [batch, tgt_len, src_len].
    """
    out = torch.empty_like(query)
    for b in range(len(query)):
        q, k, v = (
            layer.weight @ x[b].T + layer.bias[:, None]
            for layer, x in ((block.q_proj, query), (block.k_proj, memory), (block.v_proj, memory))
        )
        for t in range(query.shape[1]):
            context: list[float] = []
            for head in range(NUM_HEADS):
                dims = range(head * HEAD_DIM, (head + 1) * HEAD_DIM)
                seen = [s for s in range(memory.shape[1]) if allowed[b, t, s]]
                weights = [
                    math.exp(sum(float(q[d, t] * k[d, s]) for d in dims) / math.sqrt(HEAD_DIM))
                    for s in seen
                ]
                context += [
                    sum(w * float(v[d, s]) for w, s in zip(weights, seen, strict=True))
                    / sum(weights)
                    for d in dims
                ]
            out[b, t] = (
                block.out_proj.weight @ torch.tensor(context, dtype=torch.float64)
                + block.out_proj.bias
            )
    return out


LENGTHS = torch.tensor([5, 2])
PADDING = torch.arange(5) < LENGTHS[:, None]  # [batch, src_len]
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    ("kind", "mask", "allowed"),
    [
        ("unmasked self", None, torch.ones(2, 5, 5, dtype=torch.bool)),
        ("padded self", PADDING[:, None], PADDING[:, None].expand(2, 5, 5)),
        ("causal self", CAUSAL[None], CAUSAL.expand(2, 5, 5)),
        ("padded causal self", CAUSAL & PADDING[:, None], CAUSAL & PADDING[:, None]),
        ("padded cross", PADDING[:, None], PADDING[:, None].expand(2, 3, 5)),
    ],
)
@torch.no_grad()
def test_attention_is_its_formula_written_out(
    kind: str, mask: Tensor | None, allowed: Tensor
) -> None:
    block = attention()
    memory = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    query = torch.randn(2, 3, D_MODEL, dtype=torch.float64) if kind.endswith("cross") else memory
    torch.testing.assert_close(
        attend(block, query, memory, mask),
        written_out(block, query, memory, allowed),
        rtol=1e-12,
        atol=1e-12,
    )


@torch.no_grad()
def test_weights_sum_to_one() -> None:
    """Use the same vector for all values: any weighted mean of them must be that vector."""
    block = attention()
    block.v_proj.weight.zero_()
    x = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    expected = block.out_proj(block.v_proj.bias).expand(2, 5, D_MODEL)
    torch.testing.assert_close(
        attend(block, x, x, PADDING[:, None]), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    "mask", [None, CAUSAL[None], PADDING[:, None]], ids=["unmasked", "causal", "padded"]
)
def test_the_two_products_of_a_cpu_equal_the_fused_kernel_and_its_gradients(
    mask: Tensor | None,
) -> None:
    block = attention()
    x = torch.randn(2, 5, D_MODEL, dtype=torch.float64, requires_grad=True)
    ours = attend(block, x, x, mask)
    q, k, v = (
        layer(x).view(2, 5, NUM_HEADS, HEAD_DIM).transpose(1, 2)
        for layer in (block.q_proj, block.k_proj, block.v_proj)
    )
    theirs = F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if mask is None else mask[:, None]
    )
    theirs = block.out_proj(theirs.transpose(1, 2).reshape(2, 5, D_MODEL))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(ours)
    (our_grad,) = torch.autograd.grad((ours * direction).sum(), x, retain_graph=True)
    (their_grad,) = torch.autograd.grad((theirs * direction).sum(), x)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_forbidden_positions_have_no_influence() -> None:
    block = attention()
    x = torch.randn(2, 5, D_MODEL, dtype=torch.float64)
    memory = x.clone()
    memory[~PADDING] = 1e3
    mask = PADDING[:, None]
    assert torch.equal(attend(block, x.clone(), x, mask), attend(block, x, memory, mask))
    assert not torch.allclose(attend(block, x, x), attend(block, x, memory))


@torch.no_grad()
def test_attention_dropout_drops_weights_in_training_only() -> None:
    """Use a single position. Its weight is 1 in evaluation, and 0 or 1 / (1 - p) in training."""
    block = attention(dropout=0.5)
    nn.init.eye_(block.out_proj.weight)
    nn.init.zeros_(block.out_proj.bias)
    query, memory = (
        torch.randn(1, 2000, D_MODEL, dtype=torch.float64),
        torch.randn(1, 1, D_MODEL, dtype=torch.float64),
    )
    value = block.v_proj(memory)
    weights = (attend(block.train(), query, memory) / value).view(2000, NUM_HEADS, HEAD_DIM)
    assert torch.allclose(
        weights, weights[:, :, :1].expand_as(weights)
    )  # with one position, a weight is dropped for the whole head
    dropped = weights[:, :, 0].abs() < 1e-9
    assert torch.allclose(weights[:, :, 0][~dropped], torch.tensor(2.0, dtype=torch.float64))
    assert abs(dropped.double().mean() - 0.5) < 0.05  # 7.7 standard deviations
    assert torch.allclose(attend(block.eval(), query, memory), value.expand(1, 2000, D_MODEL))
