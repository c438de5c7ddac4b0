"""The loss against PyTorch's own cross-entropy with label smoothing, and its sums over parts of a batch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mt.config import ModelConfig
from mt.data.batching import Batch, collate
from mt.data.tokenizer import PAD_ID
from mt.model.transformer import Transformer, build_model
from mt.train.loss import loss_sums

VOCAB = 13
PAIRS = [([4, 5, 6], [7, 8]), ([9], [10, 11, 12, 4, 5]), ([6, 7, 8, 9, 10, 11], [12])]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(1)
    config = ModelConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, norm="pre", dropout=0.0)
    return Transformer(config, VOCAB, VOCAB).double().train()


def gradients(model: Transformer, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3, 0.9])
def test_the_loss_and_its_gradients_are_those_of_pytorchs_cross_entropy(model: Transformer, smoothing: float) -> None:
    batch = collate(PAIRS)
    ours = loss_sums(model, batch, smoothing)
    logits = model(batch.src, batch.src_mask, batch.tgt_in) @ model.output_weight.T
    theirs = F.cross_entropy(
        logits.transpose(1, 2), batch.tgt_out, label_smoothing=smoothing, reduction="sum", ignore_index=PAD_ID
    )
    assert ours.smoothed.dtype == torch.float64
    torch.testing.assert_close(ours.smoothed, theirs, rtol=1e-12, atol=1e-9)
    for our_grad, their_grad in zip(gradients(model, ours.smoothed), gradients(model, theirs), strict=True):
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
    by_hand = sum(-float(log_probs[i, t, token].detach()) for i, (_, tgt) in enumerate(PAIRS) for t, token in enumerate([*tgt, 3]))
    assert float(loss_sums(model, batch, 0.1).nll) == pytest.approx(by_hand, abs=1e-9)


def test_the_sums_of_two_micro_batches_are_those_of_one_big_one(model: Transformer) -> None:
    """Each split pads differently, and neither loss nor gradient sees it."""
    whole = loss_sums(model, collate(PAIRS), 0.1)
    expected = gradients(model, whole.smoothed)
    for cut in (1, 2):
        parts: list[Batch] = [collate(PAIRS[:cut]), collate(PAIRS[cut:])]
        first, second = (loss_sums(model, part, 0.1) for part in parts)
        torch.testing.assert_close(first.smoothed + second.smoothed, whole.smoothed, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(first.nll + second.nll, whole.nll, rtol=1e-7, atol=1e-7)
        for a, b, both in zip(gradients(model, first.smoothed), gradients(model, second.smoothed), expected, strict=True):
            torch.testing.assert_close(a + b, both, rtol=1e-7, atol=1e-7)
        assert sum(part.num_tokens for part in parts) == collate(PAIRS).num_tokens == 2 + 5 + 1 + 3


def test_a_model_of_equal_logits_costs_the_logarithm_of_the_vocabulary_a_token() -> None:
    model = build_model(ModelConfig(d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1), VOCAB, VOCAB, 1)
    torch.nn.init.zeros_(model.output_weight)
    batch = collate(PAIRS)
    for smoothing in (0.0, 0.1):
        loss = loss_sums(model, batch, smoothing)
        uniform = batch.num_tokens * torch.tensor(float(VOCAB)).log()
        torch.testing.assert_close(loss.nll, uniform)
        torch.testing.assert_close(loss.smoothed.detach(), uniform)
