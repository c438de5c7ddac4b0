"""Position-wise layers: dropout, activations, embeddings with sinusoidal positions."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


class Dropout(nn.Module):
    """In training, sets a fraction `p` of the values to zero and scales up the rest.

    On a CPU, the mask is made from random bytes, which is about twenty times faster than
    PyTorch's `bernoulli_`. `p` is then rounded to the nearest k/256, and the scale is computed from
    the rounded value.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._dropped = min(round(p * 256), 255)  # how many of the 256 byte values drop a value
        self.scale = 256 / (256 - self._dropped)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if not self.drops(x):
            return F.dropout(x, self.p)
        return (x * self.mask(x)).mul(self.scale)

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return residual + dropout(x)."""
        if not self.training:
            return residual + x
        if not self.drops(x):
            return residual + F.dropout(x, self.p)
        return torch.addcmul(residual, x, self.mask(x), value=self.scale)

    def drops(self, x: Tensor) -> bool:
        """Whether dropout on `x` uses `mask`. Otherwise, it uses PyTorch's dropout or is off."""
        return self.training and self.p > 0 and x.device.type == "cpu"

    def mask(self, x: Tensor) -> Tensor:
        """Draw a mask with the shape and dtype of `x`: 0 for values that are dropped, else 1.

        The mask does not contain `scale`, because bf16 could not represent it exactly.
        """
        # In place, so that the result stays uint8. A boolean result would take ten times as long.
        keep = random_bytes(x.numel()).ge_(self._dropped)
        return keep.view(x.shape).to(x.dtype)


class Activation(nn.Module):
    """The activation of the feed-forward block, followed by dropout."""

    def __init__(self, name: str, dropout: float) -> None:
        super().__init__()
        self.name = name
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply activation and dropout to `x`, which may be overwritten."""
        if self.name == "relu" and self.dropout.drops(x):
            dropped: Tensor = _DroppedReLU.apply(x, self.dropout.mask(x), self.dropout.scale)
            return dropped
        in_place = self.name == "relu" and not torch.is_grad_enabled()
        x = x.relu_() if in_place else ACTIVATIONS[self.name](x)
        return self.dropout(x) if self.training else x


class _DroppedReLU(torch.autograd.Function):
    """relu(x) * mask * scale, in place.

    The gradient flows where the result is above zero, so the backward pass needs neither `x` nor
    the mask.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        y = x.relu_().mul_(mask).mul_(scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(y)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None, None


def random_bytes(count: int) -> Tensor:
    """Return `count` uniform random bytes (uint8) from torch's CPU generator, eight per draw."""
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    return words.random_(-(2**63), None).view(torch.uint8)[:count]


class Embedding(nn.Module):
    """Token embeddings times sqrt(d_model), plus sinusoidal positions, then dropout."""

    def __init__(self, vocab_size: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.scale = math.sqrt(d_model)
        self.dropout = Dropout(dropout)
        self._sinusoids = torch.empty(0, d_model, device="cpu")

    def forward(self, tokens: Tensor, positions: Tensor | int, length: int) -> Tensor:
        """Return the embeddings [..., d_model] of ids [...].

        `positions` [...] are below `length`. If it is an integer, it is the position of all ids.
        """
        table = self.positions(length)
        x = torch.add(table[positions], F.embedding(tokens, self.weight), alpha=self.scale)
        return self.dropout(x) if self.training else x

    def positions(self, length: int) -> Tensor:
        """Return at least `length` rows of sinusoids. They are cached and are not parameters."""
        device = self.weight.device
        if len(self._sinusoids) < length or self._sinusoids.device != device:
            rows = max(256, 1 << (length - 1).bit_length())
            self._sinusoids = sinusoids(rows, self.weight.shape[1]).to(device)
        return self._sinusoids


def sinusoids(length: int, d_model: int) -> Tensor:
    """Return the position vectors [length, d_model] of Vaswani et al. 2017, section 3.5.

    The layout is Marian's: first all sines, then all cosines.
    """
    rates = torch.exp(
        torch.arange(d_model // 2, dtype=torch.float64) * (-math.log(10_000) * 2 / d_model)
    )
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
