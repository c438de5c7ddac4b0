"""Cross-entropy with label smoothing, as sums; only the train step divides, once, by the target
tokens of the whole update.

What is unusual here: projection, softmax and loss are one operation that goes over the target
positions in chunks, so the logits of a whole batch never stand in memory, and it takes its
gradients on the way, so no chunk is computed twice.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mt.data.batch import AnyBatch, Batch
from mt.data.tokenizer import PAD_ID
from mt.model.transformer import Transformer

CHUNK = {
    "cpu": 1 << 22,
    "cuda": 1 << 26,
}  # logits at a time; on a CPU so many that they stay in its cache, which is 16 to 32 MiB
TILE = {
    "cpu": 1 << 20,
    "cuda": 1 << 26,
}  # of those in half precision, how many become fp32 at a time


class Loss(NamedTuple):
    """Sums over the target tokens of a batch."""

    smoothed: Tensor  # what training minimizes
    nll: Tensor  # negative log-likelihood in nats, without smoothing, detached


class TrainingLoss(nn.Module):
    """A model with its loss: one module, so that what shares out a model among ranks sees every use
    of its parameters.
    """

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: AnyBatch) -> Loss:
        """See `loss_sums`."""
        return loss_sums(self.model, batch, self.label_smoothing)


def loss_sums(model: Transformer, batch: AnyBatch, label_smoothing: float) -> Loss:
    """Loss of one micro-batch: (1 - e) nll + e x the mean over the vocabulary (Szegedy et al.
    2016), padding left out.
    """
    if isinstance(batch, Batch):
        hidden = model(batch.src, batch.src_mask, batch.tgt_in).flatten(0, 1)
    else:
        hidden = model.packed(
            batch.src,
            batch.src_offsets,
            batch.max_src_len,
            batch.tgt_in,
            batch.tgt_offsets,
            batch.max_tgt_len,
        )
    return linear_cross_entropy(
        hidden, model.output_weight, batch.tgt_out.flatten(), label_smoothing, model.output_bias
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> Loss:
    """Loss of the logits `hidden` [positions, d_model] x `weight` [vocab, d_model]^T + `bias`
    [vocab] against `targets` [positions].

    Targets that are `PAD_ID` do not count. The products run in autocast's type; the softmax, the
    loss and its sums never below fp32.
    """
    # Inside the function, PyTorch tells nothing about `torch.no_grad`.
    with_grad = torch.is_grad_enabled()
    return Loss(
        *_LinearCrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, with_grad)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(smoothed sum, nll sum); the gradients of the first are saved if any is wanted."""
        device = hidden.device.type
        is_autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if is_autocast else hidden.dtype
        rows = max(1, CHUNK[device] // len(weight))
        with_grad = with_grad and any(ctx.needs_input_grad)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(2, dtype=exact, device=hidden.device)
        d_weight = torch.zeros_like(weight) if with_grad else None
        d_bias = torch.zeros_like(bias) if with_grad and bias is not None else None
        d_hidden = []
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
                logits = h.to(dtype) @ w.t()
                chunk_sums, d_logits = _loss_and_gradient(
                    logits, bias, target, smoothing, exact, with_grad, d_bias
                )
                sums += chunk_sums
                if d_weight is not None:
                    real = (target != PAD_ID)[:, None]
                    d_hidden.append((d_logits @ w).to(hidden.dtype) * real)
                    _add_product(d_weight, d_logits.t(), (h * real).to(dtype))
        if d_weight is not None:
            ctx.save_for_backward(torch.cat(d_hidden), d_weight, d_bias)
        smoothed, nll = sums.unbind()
        ctx.mark_non_differentiable(nll)
        return smoothed.clone(), nll

    @staticmethod
    def backward(ctx: Any, d_smoothed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = (d if d is None else d * d_smoothed for d in ctx.saved_tensors)
        return d_hidden, d_weight, d_bias, None, None, None


def _loss_and_gradient(
    logits: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, exact: torch.dtype,
    with_grad: bool, d_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The sums (smoothed, nll) of `logits` [positions, vocab] without `bias`, and the gradient of
    the first.

    All is computed in the type `exact`; the gradient comes in that of `logits`, in whose memory it
    may be. Rows of padding have one too: it is the caller's to leave them out. Adds the gradient of
    the bias to `d_bias`.
    """
    sums, gradient = torch.zeros(2, dtype=exact, device=logits.device), logits
    is_exact = logits.dtype == exact
    rows = len(logits) if is_exact else max(1, TILE[logits.device.type] // logits.shape[1])
    for tile, target in zip(logits.split(rows), targets.split(rows), strict=True):
        real = (target != PAD_ID)[:, None]
        scores = tile.to(exact) if bias is None else tile.to(exact) + bias
        probs = scores.softmax(dim=-1)
        log_sum = scores.amax(dim=-1, keepdim=True) - probs.amax(dim=-1, keepdim=True).log()
        nll = (log_sum - scores.gather(1, target[:, None])) * real
        uniform = (log_sum - scores.mean(dim=-1, keepdim=True)) * real
        sums += torch.stack([((1 - smoothing) * nll + smoothing * uniform).sum(), nll.sum()])
        if with_grad:
            # By the logits of a position: probs - (1 - e) at the target - e / vocab everywhere.
            probs.sub_(smoothing / logits.shape[1])
            probs.scatter_add_(1, target[:, None], probs.new_full((len(probs), 1), smoothing - 1))
            if d_bias is not None:
                d_bias += (probs * real).sum(dim=0)
            if is_exact:
                gradient = probs  # there is one tile
            else:
                tile.copy_(probs)
    return sums, gradient


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, added up in the type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
