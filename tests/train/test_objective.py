"""The loss against PyTorch's own cross-entropy with label smoothing, and its sums over parts of a
batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mt.config import ModelConfig
from mt.data.batch import Batch, collate, pack
from mt.data.tokenizer import PAD_ID
from mt.model.transformer import Transformer, build_model
from mt.train import objective as loss_module
from mt.train.objective import Loss, linear_cross_entropy, loss_sums

VOCAB = 13
PAIRS = [([4, 5, 6], [7, 8]), ([9], [10, 11, 12, 4, 5]), ([6, 7, 8, 9, 10, 11], [12])]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(1)
    config = ModelConfig(
        d_model=16,
        d_ff=32,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        norm="pre",
        dropout=0.0,
    )
    return Transformer(config, VOCAB, VOCAB).double().train()


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3, 0.9])
def test_the_loss_and_its_gradients_are_those_of_pytorchs_cross_entropy(
    model: Transformer, smoothing: float
) -> None:
    batch = collate(PAIRS)
    ours = loss_sums(model, batch, smoothing)
    logits = model(batch.src, batch.src_mask, batch.tgt_in) @ model.output_weight.T
    theirs = F.cross_entropy(
        logits.transpose(1, 2),
        batch.tgt_out,
        label_smoothing=smoothing,
        reduction="sum",
        ignore_index=PAD_ID,
    )
    assert ours.smoothed.dtype == torch.float64
    torch.testing.assert_close(ours.smoothed, theirs, rtol=1e-12, atol=1e-9)
    for our_grad, their_grad in zip(
        gradients(model, ours.smoothed), gradients(model, theirs), strict=True
    ):
        torch.testing.assert_close(our_grad, their_grad, rtol=1e-9, atol=1e-9)


def test_smoothing_changes_the_loss_and_leaves_the_nll_alone(model: Transformer) -> None:
    batch = collate(PAIRS)
    losses = {smoothing: loss_sums(model, batch, smoothing) for smoothing in (0.0, 0.1, 0.5)}
    for loss in losses.values():
        torch.testing.assert_close(loss.nll, losses[0.0].nll, rtol=1e-12, atol=1e-12)
        assert not loss.nll.requires_grad
    assert len({round(float(loss.smoothed.detach()), 6) for loss in losses.values()}) == 3


def test_the_nll_is_the_log_probability_of_the_targets_token_by_token(model: Transformer) -> None:
    batch = collate(PAIRS)
    log_probs = model.project(model(batch.src, batch.src_mask, batch.tgt_in)).log_softmax(-1)
    by_hand = sum(
        -float(log_probs[i, t, token].detach())
        for i, (_, tgt) in enumerate(PAIRS)
        for t, token in enumerate([*tgt, 3])
    )
    assert float(loss_sums(model, batch, 0.1).nll) == pytest.approx(by_hand, abs=1e-9)


def test_the_sums_of_two_micro_batches_are_those_of_one_big_one(model: Transformer) -> None:
    """Each split pads differently, and neither loss nor gradient sees it."""
    whole = loss_sums(model, collate(PAIRS), 0.1)
    expected = gradients(model, whole.smoothed)
    for cut in (1, 2):
        parts: list[Batch] = [collate(PAIRS[:cut]), collate(PAIRS[cut:])]
        first, second = (loss_sums(model, part, 0.1) for part in parts)
        torch.testing.assert_close(
            first.smoothed + second.smoothed, whole.smoothed, rtol=1e-7, atol=1e-7
        )
        torch.testing.assert_close(first.nll + second.nll, whole.nll, rtol=1e-7, atol=1e-7)
        for a, b, both in zip(
            gradients(model, first.smoothed),
            gradients(model, second.smoothed),
            expected,
            strict=True,
        ):
            torch.testing.assert_close(a + b, both, rtol=1e-7, atol=1e-7)
        assert sum(part.num_tokens for part in parts) == collate(PAIRS).num_tokens == 2 + 5 + 1 + 3


def test_a_model_of_equal_logits_costs_the_logarithm_of_the_vocabulary_a_token() -> None:
    model = build_model(
        ModelConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1),
        VOCAB,
        VOCAB,
        1,
    )
    torch.nn.init.zeros_(model.output_weight)
    batch = collate(PAIRS)
    for smoothing in (0.0, 0.1):
        loss = loss_sums(model, batch, smoothing)
        uniform = batch.num_tokens * torch.tensor(float(VOCAB)).log()
        torch.testing.assert_close(loss.nll, uniform)
        torch.testing.assert_close(loss.smoothed.detach(), uniform)


# --- the fused operation by itself
# ----------------------------------------------------------------------------------------------

D_MODEL, POSITIONS = 8, 23
Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(dtype: torch.dtype = torch.float64, padded: int = 6) -> Inputs:
    """Hidden states, output matrix and targets, the first and the last of which are padding."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS, D_MODEL, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCAB, D_MODEL, generator=draw, dtype=torch.float64)
    targets = torch.randint(PAD_ID + 1, VOCAB, (POSITIONS,), generator=draw)
    targets[torch.linspace(0, POSITIONS - 1, padded).long()] = PAD_ID
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def unfused(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Loss:
    """PyTorch's own, of all logits at once."""
    logits = hidden @ weight.T
    return Loss(
        *(
            F.cross_entropy(
                logits, targets, label_smoothing=e, reduction="sum", ignore_index=PAD_ID
            )
            for e in (smoothing, 0.0)
        )
    )


def cut_into(rows: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Make chunks `rows` positions long; gives a function that says how many have been computed."""
    chunks: list[None] = []
    real = loss_module._add_product
    monkeypatch.setitem(loss_module.CHUNK, "cpu", rows * VOCAB)
    monkeypatch.setattr(loss_module, "_add_product", lambda *args: chunks.append(real(*args)))
    return lambda: len(chunks)


@pytest.mark.parametrize("rows", [0, 1, 5, 11, 22, 23, 24])
def test_the_length_of_a_chunk_changes_neither_loss_nor_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of 0 rows, where one position has more logits than a chunk should; 5, 11 and 22 leave a
    shorter one at the end.
    """
    count = cut_into(rows, monkeypatch)
    hidden, weight, targets = inputs()
    ours, theirs = (
        linear_cross_entropy(hidden, weight, targets, 0.1),
        unfused(hidden, weight, targets, 0.1),
    )
    assert count() == -(-POSITIONS // max(rows, 1))
    torch.testing.assert_close(ours.smoothed, theirs.smoothed, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.nll, theirs.nll, rtol=1e-12, atol=0)
    for a, b in zip(
        *(torch.autograd.grad(loss.smoothed, (hidden, weight)) for loss in (ours, theirs)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [4, 100])
def test_gradients_agree_with_finite_differences(
    smoothing: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_into(rows, monkeypatch)
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, smoothing).smoothed, (hidden, weight)
    )


@pytest.mark.parametrize("rows", [4, 100])
def test_a_bias_of_the_outputs_has_its_loss_and_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_into(rows, monkeypatch)
    hidden, weight, targets = inputs()
    bias = torch.randn(
        VOCAB, dtype=hidden.dtype, generator=torch.Generator().manual_seed(2), requires_grad=True
    )
    logits = hidden @ weight.T + bias
    expected = F.cross_entropy(
        logits, targets, label_smoothing=0.1, reduction="sum", ignore_index=PAD_ID
    )
    ours = linear_cross_entropy(hidden, weight, targets, 0.1, bias).smoothed
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for a, b in zip(
        *(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (ours, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_scale_with_that_of_the_loss_as_often_as_it_is_asked() -> None:
    """They are taken in the forward pass, when nothing is known of what the loss will be multiplied
    by.
    """
    hidden, weight, targets = inputs()
    ours, theirs = (
        linear_cross_entropy(hidden, weight, targets, 0.1).smoothed,
        unfused(hidden, weight, targets, 0.1).smoothed,
    )
    for factor in (1.0, 3 / 7, -2.0, 0.0, 2.0**16):
        for a, b in zip(
            *(
                torch.autograd.grad(loss * factor, (hidden, weight), retain_graph=True)
                for loss in (ours, theirs)
            ),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * abs(factor))


def test_two_losses_of_one_matrix_add_up_their_gradients() -> None:
    hidden, weight, targets = inputs()
    for start in (0, 9):
        linear_cross_entropy(hidden[start:], weight, targets[start:], 0.1).smoothed.backward()
    both = (
        unfused(hidden, weight, targets, 0.1).smoothed
        + unfused(hidden[9:], weight, targets[9:], 0.1).smoothed
    )
    for leaf, expected in zip(
        (hidden, weight), torch.autograd.grad(both, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1])
def test_either_input_may_need_no_gradient(frozen: int) -> None:
    hidden, weight, targets = inputs()
    leaf = (weight, hidden)[frozen]
    (hidden, weight)[frozen].requires_grad_(False)
    losses = [
        function(hidden, weight, targets, 0.1).smoothed
        for function in (linear_cross_entropy, unfused)
    ]
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, leaf)[0] for loss in losses), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_sums_are_the_same(
    context: Callable[[], AbstractContextManager[None]], model: Transformer
) -> None:
    batch = collate(PAIRS)
    with_gradients = loss_sums(model, batch, 0.1)
    with context():
        without = loss_sums(model, batch, 0.1)
    assert with_gradients.smoothed.requires_grad
    assert not without.smoothed.requires_grad
    assert torch.equal(without.smoothed, with_gradients.smoothed)
    assert torch.equal(without.nll, with_gradients.nll)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_none_are_computed(
    context: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation needs the loss alone, and the gradients are two thirds of the work."""
    products: list[Tensor] = []
    monkeypatch.setattr(loss_module, "_add_product", lambda total, a, b: products.append(a))
    hidden, weight, targets = inputs()
    with context():
        linear_cross_entropy(hidden, weight, targets, 0.1)
    assert not products
    linear_cross_entropy(hidden, weight, targets, 0.1)
    assert products


def test_padding_gets_no_gradient_and_its_hidden_states_do_not_matter() -> None:
    hidden, weight, targets = inputs()
    padding = targets == PAD_ID
    elsewhere = hidden.detach().clone()
    elsewhere[padding] = 50.0
    results = []
    for states in (hidden, elsewhere.requires_grad_()):
        loss = linear_cross_entropy(states, weight, targets, 0.1)
        results.append((*loss, *torch.autograd.grad(loss.smoothed, (states, weight))))
        d_hidden = results[-1][2]
        assert not d_hidden[padding].any()
        assert d_hidden[~padding].abs().sum(dim=1).gt(1e-3).all()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_batch_that_is_all_padding_costs_nothing() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, PAD_ID), 0.1)
    assert float(loss.smoothed.detach()) == float(loss.nll) == 0
    assert not any(
        gradient.any() for gradient in torch.autograd.grad(loss.smoothed, (hidden, weight))
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_huge_logits_give_finite_numbers(smoothing: float) -> None:
    """Far beyond the range of exp: some 1e4."""
    hidden, weight, targets = (x.detach() for x in inputs(torch.float32))
    hidden = (hidden * (1e4 / (hidden @ weight.T).abs().max())).requires_grad_()
    weight.requires_grad_()
    ours = linear_cross_entropy(hidden, weight, targets, smoothing)
    exact = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    theirs = unfused(*exact, targets, smoothing)
    torch.testing.assert_close(ours.smoothed.double(), theirs.smoothed, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.nll.double(), theirs.nll, rtol=1e-6, atol=0)
    our_grads, their_grads = (
        torch.autograd.grad(ours.smoothed, (hidden, weight)),
        torch.autograd.grad(theirs.smoothed, exact),
    )
    for a, b in zip(our_grads, their_grads, strict=True):
        assert a.isfinite().all()
        assert float((a.double() - b).norm() / b.norm()) < 1e-3


def test_a_certain_model_is_charged_almost_nothing() -> None:
    """The logarithm of a sum that one term makes up."""
    hidden = torch.eye(VOCAB)[1:] * 30
    loss = linear_cross_entropy(hidden, torch.eye(VOCAB), torch.arange(1, VOCAB), 0.0)
    assert 0 <= float(loss.nll) < 1e-4


# --- in half precision
# ----------------------------------------------------------------------------------------------------------


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def test_under_autocast_the_products_alone_are_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle rounds what goes into the product and what comes out, and computes the rest in
    float64.
    """
    cut_into(5, monkeypatch)
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, 0.1)
    assert loss.smoothed.dtype == loss.nll.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).double()
    for ours, smoothing in ((loss.smoothed, 0.1), (loss.nll, 0.0)):
        exact = F.cross_entropy(
            logits, targets, label_smoothing=smoothing, reduction="sum", ignore_index=PAD_ID
        )
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    unrounded = unfused(hidden, weight, targets, 0.1).smoothed
    assert (
        1e-6 < relative_error(loss.smoothed.detach(), unrounded.detach()) < 2**-7
    )  # of logits rounded by up to 2^-9 of themselves
    gradients, exact_gradients = (
        torch.autograd.grad(x, (hidden, weight)) for x in (loss.smoothed, unrounded)
    )
    for a, b in zip(gradients, exact_gradients, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < 2**-6


def test_under_autocast_the_loss_of_the_model_is_near_that_of_fp32(model: Transformer) -> None:
    """bf16 keeps 8 bits, so a rounding is off by 2^-9; the bounds leave room for a few dozen of
    them, and not for a wrong term.
    """
    model, batch = model.float(), collate(PAIRS)
    exact = loss_sums(model, batch, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_sums(model, batch, 0.1)
    assert loss.smoothed.dtype == loss.nll.dtype == torch.float32
    assert not torch.equal(loss.smoothed, exact.smoothed)
    assert relative_error(loss.smoothed.detach(), exact.smoothed.detach()) < 0.01
    assert relative_error(loss.nll, exact.nll) < 0.01
    ours, theirs = gradients(model, loss.smoothed), gradients(model, exact.smoothed)
    assert {gradient.dtype for gradient in ours} == {torch.float32}
    flat = [torch.cat([gradient.flatten() for gradient in side]) for side in (ours, theirs)]
    assert relative_error(*flat) < 0.03


def test_a_long_batch_is_summed_in_fp32_under_autocast() -> None:
    """In bf16 a sum stops growing at 256 times what is added."""
    positions = 4096
    targets = torch.full((positions,), VOCAB - 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(
            torch.zeros(positions, D_MODEL), torch.ones(VOCAB, D_MODEL), targets, 0.1
        )
    torch.testing.assert_close(loss.nll, positions * torch.tensor(float(VOCAB)).log())
    torch.testing.assert_close(loss.smoothed, loss.nll)


# --- packed batches
# -------------------------------------------------------------------------------------------------------------


def test_a_packed_batch_has_the_loss_and_the_gradients_of_the_padded_one(
    model: Transformer,
) -> None:
    padded, packed = loss_sums(model, collate(PAIRS), 0.1), loss_sums(model, pack(PAIRS), 0.1)
    torch.testing.assert_close(packed.smoothed, padded.smoothed, rtol=1e-12, atol=0)
    torch.testing.assert_close(packed.nll, padded.nll, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        gradients(model, packed.smoothed), gradients(model, padded.smoothed), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


# --- on a GPU
# -------------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_on_a_gpu_is_that_of_a_cpu(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float64 as it is, the others as the type of autocast."""
    monkeypatch.setitem(loss_module.CHUNK, "cuda", rows * VOCAB)
    half = dtype != torch.float64
    hidden, weight, targets = inputs(torch.float32 if half else torch.float64)
    leaves = [x.detach().cuda().requires_grad_() for x in (hidden, weight)]
    with torch.autocast("cuda", dtype if half else torch.bfloat16, enabled=half):
        ours = linear_cross_entropy(leaves[0], leaves[1], targets.cuda(), 0.1)
    theirs = unfused(hidden, weight, targets, 0.1)
    assert ours.smoothed.dtype == ours.nll.dtype == hidden.dtype
    bound = 2**-6 if half else 1e-10
    our_grads, their_grads = (
        torch.autograd.grad(ours.smoothed, leaves),
        torch.autograd.grad(theirs.smoothed, (hidden, weight)),
    )
    for a, b in zip([*ours, *our_grads], [*theirs, *their_grads], strict=True):
        assert relative_error(a.detach().cpu(), b.detach()) < bound
