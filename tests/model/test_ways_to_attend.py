"""Compare padded and packed attention with PyTorch, sentence by sentence, and with each other.

Gradients are compared as well.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mt.model.attention import Attention, PackedAttention, PaddedAttention
from mt.model.kernels import varlen_reference
from mt.model.layers import Dropout

NUM_HEADS, HEAD_DIM, SCALE = 3, 4, 0.5
TGT_LENS, SRC_LENS = [5, 1, 4], [3, 6, 1]
NO_DROPOUT = Dropout(0.0).train()

Heads = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(1)


def standing(lens: list[int]) -> Tensor:
    """Return a mask [batch, longest] that is True for tokens and False for padding."""
    return torch.arange(max(lens)) < torch.tensor(lens)[:, None]


def triangle(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def heads(*tokens: int) -> Heads:
    """Return random queries, keys and values [tokens, num_heads, head_dim] that need gradients."""
    drawn = [
        torch.randn(count, NUM_HEADS, HEAD_DIM, dtype=torch.float64, requires_grad=True)
        for count in tokens
    ]
    return drawn[0], drawn[1], drawn[2]


def with_gradients(out: Tensor, direction: Tensor, inputs: Heads) -> list[Tensor]:
    """Return the output, and each input's gradient if the output's gradient is `direction`."""
    return [out, *torch.autograd.grad((out * direction).sum(), inputs)]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-3  # zeros would always agree
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


PADDED = [
    pytest.param(5, 5, None, id="unmasked self"),
    pytest.param(4, 6, None, id="unmasked cross"),
    pytest.param(5, 5, triangle(5)[None], id="causal, one for all"),
    pytest.param(5, 6, standing(SRC_LENS)[:, None], id="padded cross"),
    pytest.param(5, 5, standing(TGT_LENS)[:, None] & triangle(5), id="padded and causal"),
    pytest.param(1, 6, standing(SRC_LENS)[:, None], id="one query"),
]


@pytest.mark.parametrize(("tgt_len", "src_len", "allowed"), PADDED)
def test_padded_attention_and_its_gradients_are_pytorchs_sentence_by_sentence(
    tgt_len: int, src_len: int, allowed: Tensor | None
) -> None:
    batch = len(SRC_LENS)
    q, k, v = heads(batch * tgt_len, batch * src_len, batch * src_len)
    ours = PaddedAttention.of(batch, allowed).attend(q, k, v, SCALE, NO_DROPOUT)
    rows = []
    for i in range(batch):  # token i belongs to sentence i % batch, because time comes first
        mask = None if allowed is None else allowed[i if len(allowed) > 1 else 0]
        rows.append(
            F.scaled_dot_product_attention(
                *(x[i::batch].transpose(0, 1) for x in (q, k, v)), attn_mask=mask
            )
        )
    theirs = torch.stack(rows).permute(2, 0, 1, 3).reshape(batch * tgt_len, NUM_HEADS * HEAD_DIM)
    direction = torch.randn_like(ours)
    assert_same(
        with_gradients(ours, direction, (q, k, v)), with_gradients(theirs, direction, (q, k, v))
    )


@pytest.mark.parametrize(("tgt_len", "src_len", "allowed"), PADDED)
def test_the_fused_kernel_of_other_devices_equals_the_products_of_a_cpu(
    tgt_len: int, src_len: int, allowed: Tensor | None
) -> None:
    batch = len(SRC_LENS)
    q, k, v = heads(batch * tgt_len, batch * src_len, batch * src_len)
    mask = PaddedAttention.of(batch, allowed)
    products, fused = (
        mask.attend(q, k, v, SCALE, NO_DROPOUT),
        mask._fused(q, k, v, SCALE, NO_DROPOUT),
    )
    direction = torch.randn_like(products)
    assert_same(
        with_gradients(fused, direction, (q, k, v)), with_gradients(products, direction, (q, k, v))
    )


@torch.no_grad()
def test_the_fused_kernel_drops_weights_in_training_only() -> None:
    """Use a single position. Its weight is 1 in evaluation, and 0 or 2 in training."""
    q, k, v = heads(2000, 1, 1)
    mask, dropout = PaddedAttention.of(1, None), Dropout(0.5)
    weights = (mask._fused(q, k, v, SCALE, dropout.train()) / v.flatten()).view(
        2000, NUM_HEADS, HEAD_DIM
    )[:, :, 0]
    dropped = weights.abs() < 1e-9
    torch.testing.assert_close(weights[~dropped], torch.full_like(weights[~dropped], 2.0))
    assert abs(dropped.double().mean() - 0.5) < 0.04  # 6 standard deviations of 6,000 draws
    torch.testing.assert_close(
        mask._fused(q, k, v, SCALE, dropout.eval()), v.flatten().expand(2000, -1)
    )


def test_a_bias_is_zero_where_attention_is_allowed_and_minus_infinity_elsewhere() -> None:
    allowed = torch.tensor([[[True, False, True]]])
    bias = PaddedAttention.of(1, allowed).bias
    assert bias is not None
    assert bias.tolist() == [[[0.0, float("-inf"), 0.0]]]
    assert PaddedAttention.of(1, None).bias is None


def offsets(lens: list[int]) -> Tensor:
    return torch.tensor([0, *lens]).cumsum(0).to(torch.int32)


def packed_mask(tgt_lens: list[int], src_lens: list[int], causal: bool) -> PackedAttention:
    return PackedAttention(
        offsets(tgt_lens), offsets(src_lens), max(tgt_lens), max(src_lens), causal
    )


def time_first(packed: Tensor, lens: list[int]) -> Tensor:
    """Turn packed [tokens, ...] into padded [longest x batch, ...].

    The padding is filled with a large number, so that any use of it would show in the result.
    """
    padded = torch.full((len(lens), max(lens), *packed.shape[1:]), 100.0, dtype=packed.dtype)
    padded[standing(lens)] = packed
    return padded.transpose(0, 1).flatten(0, 1)


def sentence_by_sentence(padded: Tensor, lens: list[int]) -> Tensor:
    """Undo `time_first`."""
    return padded.unflatten(0, (max(lens), len(lens))).transpose(0, 1)[standing(lens)]


@pytest.mark.parametrize(
    ("kind", "tgt_lens", "src_lens"),
    [
        ("self", SRC_LENS, SRC_LENS),
        ("causal", TGT_LENS, TGT_LENS),
        ("cross", TGT_LENS, SRC_LENS),
        ("cross", [7], [2]),
    ],
)
def test_packed_sentences_attend_as_padded_ones_do(
    kind: str, tgt_lens: list[int], src_lens: list[int]
) -> None:
    q, k, v = heads(sum(tgt_lens), sum(src_lens), sum(src_lens))
    packed = packed_mask(tgt_lens, src_lens, kind == "causal").attend(q, k, v, SCALE, NO_DROPOUT)
    allowed = triangle(max(tgt_lens))[None] if kind == "causal" else standing(src_lens)[:, None]
    heads_padded = time_first(q, tgt_lens), time_first(k, src_lens), time_first(v, src_lens)
    padded = sentence_by_sentence(
        PaddedAttention.of(len(tgt_lens), allowed).attend(*heads_padded, SCALE, NO_DROPOUT),
        tgt_lens,
    )
    direction = torch.randn_like(packed)
    assert_same(
        with_gradients(packed, direction, (q, k, v)), with_gradients(padded, direction, (q, k, v))
    )


def test_packed_attention_refuses_dropout_in_training_alone() -> None:
    q, k, v = heads(3, 3, 3)
    mask: Attention = packed_mask([2, 1], [2, 1], causal=False)
    with pytest.raises(AssertionError, match="no dropout"):
        mask.attend(q, k, v, SCALE, Dropout(0.1).train())
    assert torch.equal(
        mask.attend(q, k, v, SCALE, Dropout(0.1).eval()), mask.attend(q, k, v, SCALE, NO_DROPOUT)
    )


def test_the_reference_takes_no_sequence_from_its_neighbour() -> None:
    """Use each sentence's number as its values, so that attention to another sentence shows."""
    lens = [2, 3, 1]
    names = torch.repeat_interleave(torch.arange(3.0), torch.tensor(lens))[:, None, None].expand(
        -1, NUM_HEADS, HEAD_DIM
    )
    q, k, _ = (x.detach().float() for x in heads(6, 6, 6))
    out = varlen_reference(q, k, names, offsets(lens), offsets(lens), 3, 3, window_size=(-1, -1))
    torch.testing.assert_close(out, names)


# --- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("kind", "tgt_lens", "src_lens"),
    [("self", SRC_LENS, SRC_LENS), ("causal", TGT_LENS, TGT_LENS), ("cross", TGT_LENS, SRC_LENS)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_of_packed_sentences_is_the_reference(
    kind: str, tgt_lens: list[int], src_lens: list[int], dtype: torch.dtype
) -> None:
    """Compare with float64 arithmetic on the same half-precision inputs.

    The remaining difference comes from rounding weights and results. It is about 2^-8 near 1.
    """
    cuda = torch.device("cuda")
    tokens = sum(tgt_lens), sum(src_lens), sum(src_lens)
    half = [
        torch.randn(count, NUM_HEADS, 16, device=cuda, dtype=dtype, requires_grad=True)
        for count in tokens
    ]
    exact = [x.detach().cpu().double().requires_grad_() for x in half]
    mask = packed_mask(tgt_lens, src_lens, kind == "causal")
    there = PackedAttention(
        mask.tgt_offsets.to(cuda),
        mask.src_offsets.to(cuda),
        mask.max_tgt_len,
        mask.max_src_len,
        mask.causal,
    )
    ours, theirs = (
        there.attend(half[0], half[1], half[2], 0.25, NO_DROPOUT),
        mask.attend(exact[0], exact[1], exact[2], 0.25, NO_DROPOUT),
    )
    direction = torch.randn_like(ours)
    our_grads = torch.autograd.grad((ours * direction).sum(), half)
    their_grads = torch.autograd.grad((theirs * direction.cpu().double()).sum(), exact)
    for a, b in zip([ours, *our_grads], [theirs, *their_grads], strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=0.02, atol=0.04)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(("tgt_len", "src_len", "allowed"), PADDED)
def test_padded_attention_on_a_gpu_is_that_of_the_cpu(
    tgt_len: int, src_len: int, allowed: Tensor | None
) -> None:
    batch, cuda = len(SRC_LENS), torch.device("cuda")
    here = [
        x.detach().float().requires_grad_()
        for x in heads(batch * tgt_len, batch * src_len, batch * src_len)
    ]
    there = [x.detach().to(cuda).requires_grad_() for x in here]
    ours = PaddedAttention.of(batch, None if allowed is None else allowed.to(cuda)).attend(
        there[0], there[1], there[2], SCALE, NO_DROPOUT
    )
    theirs = PaddedAttention.of(batch, allowed).attend(here[0], here[1], here[2], SCALE, NO_DROPOUT)
    direction = torch.randn_like(theirs)
    our_grads = torch.autograd.grad((ours * direction.to(cuda)).sum(), there)
    for a, b in zip(
        [ours, *our_grads],
        [theirs, *torch.autograd.grad((theirs * direction).sum(), here)],
        strict=True,
    ):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-4)
