"""The fused cross-entropy compared with `torch.nn.functional.cross_entropy` over all logits."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mt.data.tokenizer import PAD_ID
from mt.train import cross_entropy
from mt.train.cross_entropy import Loss, linear_cross_entropy

VOCAB, D_MODEL, POSITIONS = 13, 8, 23
Inputs = tuple[Tensor, Tensor, Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(dtype: torch.dtype = torch.float64, padded: int = 6) -> Inputs:
    """Return random hidden states, a weight, and targets of which `padded` are padding."""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS, D_MODEL, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCAB, D_MODEL, generator=draw, dtype=torch.float64)
    targets = torch.randint(PAD_ID + 1, VOCAB, (POSITIONS,), generator=draw)
    targets[torch.linspace(0, POSITIONS - 1, padded).long()] = PAD_ID
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def unfused(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Loss:
    """Return the reference: the same loss from PyTorch, with all logits in memory."""
    logits = hidden @ weight.T
    return Loss(plain_loss(logits, targets, smoothing), plain_loss(logits, targets, 0.0))


def plain_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(
        logits, targets, label_smoothing=smoothing, reduction="sum", ignore_index=PAD_ID
    )


def set_chunk_rows(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the size of each chunk to `rows` positions."""
    monkeypatch.setitem(cross_entropy.CHUNK, "cpu", rows * VOCAB)


def count_chunks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that counts the chunks whose gradients have been computed so far."""
    chunks: list[None] = []
    add_chunk = cross_entropy._Gradients.add_chunk
    monkeypatch.setattr(
        cross_entropy._Gradients, "add_chunk", lambda *args: chunks.append(add_chunk(*args))
    )
    return lambda: len(chunks)


@pytest.mark.parametrize("rows", [0, 1, 5, 11, 22, 23, 24])
def test_the_length_of_a_chunk_changes_neither_loss_nor_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 0 rows, even a single position exceeds the chunk size. With 5, 11 and 22 rows, the last
    chunk is shorter than the others.
    """
    set_chunk_rows(rows, monkeypatch)
    num_chunks = count_chunks(monkeypatch)
    hidden, weight, targets = inputs()
    ours, theirs = (
        linear_cross_entropy(hidden, weight, targets, 0.1),
        unfused(hidden, weight, targets, 0.1),
    )
    assert num_chunks() == -(-POSITIONS // max(rows, 1))
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
    set_chunk_rows(rows, monkeypatch)
    hidden, weight, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, smoothing).smoothed, (hidden, weight)
    )


@pytest.mark.parametrize("rows", [4, 100])
def test_the_bias_of_the_logits_counts_in_loss_and_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_chunk_rows(rows, monkeypatch)
    hidden, weight, targets = inputs()
    bias = torch.randn(
        VOCAB, dtype=hidden.dtype, generator=torch.Generator().manual_seed(2), requires_grad=True
    )
    logits = hidden @ weight.T + bias
    expected = plain_loss(logits, targets, 0.1)
    ours = linear_cross_entropy(hidden, weight, targets, 0.1, bias).smoothed
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for a, b in zip(
        *(torch.autograd.grad(loss, (hidden, weight, bias)) for loss in (ours, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_backward_scales_the_gradients_each_time_it_runs() -> None:
    """The gradients come from the forward pass, where the factor of the loss is not yet known."""
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


def test_two_losses_with_the_same_weight_add_up_their_gradients() -> None:
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
def test_without_gradients_none_are_computed(
    context: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation needs only the loss, and computing gradients is two thirds of the work."""
    num_chunks = count_chunks(monkeypatch)
    hidden, weight, targets = inputs()
    with context():
        linear_cross_entropy(hidden, weight, targets, 0.1)
    assert num_chunks() == 0
    linear_cross_entropy(hidden, weight, targets, 0.1)
    assert num_chunks() == 1


def test_padding_gets_no_gradient_and_its_hidden_states_do_not_matter() -> None:
    hidden, weight, targets = inputs()
    padding = targets == PAD_ID
    changed = hidden.detach().clone()
    changed[padding] = 50.0
    results = []
    for states in (hidden, changed.requires_grad_()):
        loss = linear_cross_entropy(states, weight, targets, 0.1)
        results.append((*loss, *torch.autograd.grad(loss.smoothed, (states, weight))))
        d_hidden = results[-1][2]
        assert not d_hidden[padding].any()
        assert d_hidden[~padding].abs().sum(dim=1).gt(1e-3).all()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_batch_of_padding_has_no_loss_and_no_gradients() -> None:
    hidden, weight, targets = inputs()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(targets, PAD_ID), 0.1)
    assert float(loss.smoothed.detach()) == float(loss.nll) == 0
    assert not any(
        gradient.any() for gradient in torch.autograd.grad(loss.smoothed, (hidden, weight))
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_huge_logits_give_finite_numbers(smoothing: float) -> None:
    """The logits go up to 1e4, far beyond the range of exp."""
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


def test_a_model_that_is_certain_and_right_has_almost_no_loss() -> None:
    """The softmax denominator consists almost entirely of the target's term."""
    hidden = torch.eye(VOCAB)[1:] * 30
    loss = linear_cross_entropy(hidden, torch.eye(VOCAB), torch.arange(1, VOCAB), 0.0)
    assert 0 <= float(loss.nll) < 1e-4


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def test_under_autocast_the_products_alone_are_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference rounds the inputs and the result of the matrix product to bf16, and computes
    everything else in float64.
    """
    set_chunk_rows(5, monkeypatch)
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, 0.1)
    assert loss.smoothed.dtype == loss.nll.dtype == torch.float32
    logits = (hidden.bfloat16() @ weight.bfloat16().T).double()
    for ours, smoothing in ((loss.smoothed, 0.1), (loss.nll, 0.0)):
        exact = plain_loss(logits, targets, smoothing)
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    unrounded = unfused(hidden, weight, targets, 0.1).smoothed
    # Rounding to bf16 changes a logit by up to 2^-9 of its value.
    assert 1e-6 < relative_error(loss.smoothed.detach(), unrounded.detach()) < 2**-7
    gradients, exact_gradients = (
        torch.autograd.grad(x, (hidden, weight)) for x in (loss.smoothed, unrounded)
    )
    for a, b in zip(gradients, exact_gradients, strict=True):
        assert a.dtype == torch.float32
        assert relative_error(a, b) < 2**-6


@pytest.mark.parametrize("rows", [1, 4, 11])
def test_the_length_of_a_tile_changes_neither_loss_nor_gradients(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-precision logits are converted to fp32 tile by tile."""
    hidden, weight, targets = inputs(torch.float32)
    results = []
    for tile in (cross_entropy.TILE["cpu"], rows * VOCAB):
        monkeypatch.setitem(cross_entropy.TILE, "cpu", tile)
        with torch.autocast("cpu", torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets, 0.1)
        results.append((*loss, *torch.autograd.grad(loss.smoothed, (hidden, weight))))
    for in_one_tile, in_tiles in zip(*results, strict=True):
        torch.testing.assert_close(in_tiles, in_one_tile, rtol=1e-6, atol=0)


def test_a_long_batch_is_summed_in_fp32_under_autocast() -> None:
    """A bf16 sum of equal terms would stop growing at 256 terms."""
    positions = 4096
    targets = torch.full((positions,), VOCAB - 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(
            torch.zeros(positions, D_MODEL), torch.ones(VOCAB, D_MODEL), targets, 0.1
        )
    torch.testing.assert_close(loss.nll, positions * torch.tensor(float(VOCAB)).log())
    torch.testing.assert_close(loss.smoothed, loss.nll)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rows", [5, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_on_a_gpu_equals_the_loss_on_a_cpu(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float64 case runs without autocast; bf16 and fp16 are used as autocast dtypes."""
    monkeypatch.setitem(cross_entropy.CHUNK, "cuda", rows * VOCAB)
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
