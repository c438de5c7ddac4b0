"""Cross-entropy with label smoothing, computed directly from the decoder's hidden states.

Projection, softmax and loss are a single operation. It processes the target positions in chunks, so
the logits of the whole batch are never in memory at once. It computes the gradients of a chunk
together with the loss, so the backward pass does not have to compute the logits again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mt.data.tokenizer import PAD_ID

# Logits per chunk. On a CPU, a chunk should fit into its cache, which is 16 to 32 MiB.
CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
# Logits per tile. The logits of a half-precision chunk are converted to fp32 tile by tile.
TILE = {"cpu": 1 << 20, "cuda": 1 << 26}


class Loss(NamedTuple):
    """Sums over the target tokens of a batch."""

    smoothed: Tensor  # what training minimizes
    nll: Tensor  # negative log-likelihood in nats, without label smoothing, detached


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    label_smoothing: float,
    bias: Tensor | None = None,
) -> Loss:
    """Return the loss of the logits `hidden @ weight.T + bias` against `targets`.

    `hidden` is [positions, d_model], `weight` [vocab, d_model], `bias` [vocab] and `targets`
    [positions]. Targets that are `PAD_ID` do not count. The matrix products run in the dtype of
    autocast; the softmax, the loss and its sums run in at least fp32.
    """
    # Inside the forward of an autograd function, gradients are always disabled, so ask here.
    is_grad_enabled = torch.is_grad_enabled()
    return Loss(
        *_LinearCrossEntropy.apply(hidden, weight, bias, targets, label_smoothing, is_grad_enabled)
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        is_grad_enabled: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return the sums (smoothed loss, nll) and save the gradients of the smoothed loss."""
        device, dtype = hidden.device.type, hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        needs_grad = is_grad_enabled and any(ctx.needs_input_grad)
        gradients = _Gradients(weight, bias) if needs_grad else None
        sums = torch.zeros(2, dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        rows = max(1, CHUNK[device] // len(weight))
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            for h, target in zip(hidden.split(rows), targets.split(rows), strict=True):
                logits = h.to(dtype) @ w.t()  # [rows, vocab]
                chunk_sums, d_logits = _chunk_loss(logits, bias, target, smoothing, gradients)
                sums += chunk_sums
                if gradients is not None:
                    gradients.add_chunk(h, w, target, d_logits)
        if gradients is not None:
            ctx.save_for_backward(torch.cat(gradients.hidden), gradients.weight, gradients.bias)
        smoothed, nll = sums.unbind()
        ctx.mark_non_differentiable(nll)
        return smoothed.clone(), nll

    @staticmethod
    def backward(ctx: Any, d_smoothed: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the saved gradients by `d_smoothed`, the gradient of the smoothed loss."""
        d_hidden, d_weight, d_bias = (d if d is None else d * d_smoothed for d in ctx.saved_tensors)
        return d_hidden, d_weight, d_bias, None, None, None


class _Gradients:
    """The gradients of the smoothed loss with respect to the inputs, added up chunk by chunk."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.hidden: list[Tensor] = []  # one tensor per chunk
        self.weight = torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)

    def add_chunk(self, hidden: Tensor, weight: Tensor, targets: Tensor, d_logits: Tensor) -> None:
        """Propagate `d_logits` [rows, vocab] back to `hidden` [rows, d_model] and the weight.

        `weight` is the weight in the dtype of the products.
        """
        real = (targets != PAD_ID)[:, None]
        self.hidden.append((d_logits @ weight).to(hidden.dtype) * real)
        h = (hidden * real).to(weight.dtype)
        if weight.dtype == self.weight.dtype:
            self.weight.addmm_(d_logits.t(), h)
        else:
            self.weight += d_logits.t() @ h


def _chunk_loss(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    smoothing: float,
    gradients: _Gradients | None,
) -> tuple[Tensor, Tensor]:
    """Return (loss sums, gradient of the logits) for `logits` [rows, vocab] without the bias.

    Half-precision logits are converted to fp32 one tile at a time, and are overwritten by their
    gradient. The gradient is only computed if `gradients` is given.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if logits.dtype == dtype:
        return _tile_loss(logits, bias, targets, smoothing, gradients)
    sums = torch.zeros(2, dtype=dtype, device=logits.device)
    rows = max(1, TILE[logits.device.type] // logits.shape[1])
    for tile, target in zip(logits.split(rows), targets.split(rows), strict=True):
        tile_sums, d_tile = _tile_loss(tile.to(dtype), bias, target, smoothing, gradients)
        sums += tile_sums
        if gradients is not None:
            tile.copy_(d_tile)
    return sums, logits


def _tile_loss(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    smoothing: float,
    gradients: _Gradients | None,
) -> tuple[Tensor, Tensor]:
    """Like `_chunk_loss`, for logits in fp32 or fp64.

    The loss of a position is (1 - smoothing) x nll + smoothing x the mean of -log p over the
    vocabulary (Szegedy et al. 2016). The gradient of the bias is added to `gradients`.
    """
    scores = logits if bias is None else logits + bias
    real = (targets != PAD_ID)[:, None]
    probs = scores.softmax(dim=-1)
    # log(sum(exp(scores))) equals the largest score minus the logarithm of its probability.
    log_sum = scores.amax(dim=-1, keepdim=True) - probs.amax(dim=-1, keepdim=True).log()
    nll = (log_sum - scores.gather(1, targets[:, None])) * real
    uniform = (log_sum - scores.mean(dim=-1, keepdim=True)) * real
    sums = torch.stack([((1 - smoothing) * nll + smoothing * uniform).sum(), nll.sum()])
    if gradients is not None:
        # The gradient of the logits is the softmax minus the smoothed target distribution, which
        # is smoothing / vocab for every token, plus 1 - smoothing for the target.
        probs.sub_(smoothing / logits.shape[1])
        probs.scatter_add_(1, targets[:, None], probs.new_full((len(probs), 1), smoothing - 1))
        if gradients.bias is not None:
            gradients.bias += (probs * real).sum(dim=0)
    return sums, probs
