"""The training objective compared with plain PyTorch, and its sums over parts of a batch."""

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
from mt.train.objective import loss_sums
from tests.train.test_cross_entropy import relative_error

VOCAB = 13
PAIRS = [([4, 5, 6], [7, 8]), ([9], [10, 11, 12, 4, 5]), ([6, 7, 8, 9, 10, 11], [12])]


pytestmark = pytest.mark.usefixtures("one_thread")


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
def test_loss_and_gradients_equal_those_of_pytorchs_cross_entropy(
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


def test_label_smoothing_changes_the_loss_but_not_the_nll(model: Transformer) -> None:
    batch = collate(PAIRS)
    losses = {smoothing: loss_sums(model, batch, smoothing) for smoothing in (0.0, 0.1, 0.5)}
    for loss in losses.values():
        torch.testing.assert_close(loss.nll, losses[0.0].nll, rtol=1e-12, atol=1e-12)
        assert not loss.nll.requires_grad
    assert len({round(float(loss.smoothed.detach()), 6) for loss in losses.values()}) == 3


def test_the_nll_is_the_negative_log_probability_of_the_target_tokens(model: Transformer) -> None:
    batch = collate(PAIRS)
    log_probs = model.project(model(batch.src, batch.src_mask, batch.tgt_in)).log_softmax(-1)
    expected = sum(
        -float(log_probs[i, t, token].detach())
        for i, (_, tgt) in enumerate(PAIRS)
        for t, token in enumerate([*tgt, 3])
    )
    assert float(loss_sums(model, batch, 0.1).nll) == pytest.approx(expected, abs=1e-9)


def test_two_micro_batches_have_the_sums_of_one_big_batch(model: Transformer) -> None:
    """The parts are padded differently from the whole, which changes neither loss nor gradients."""
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


def test_equal_logits_have_a_loss_of_log_vocab_size_per_token() -> None:
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


def test_under_autocast_the_loss_of_the_model_is_near_that_of_fp32(model: Transformer) -> None:
    """Rounding to bf16, which keeps 8 bits, changes a value by up to 2^-9 of itself. The bounds
    allow a few dozen such errors, but not a wrong term.
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
