"""The position-wise parts: dropout, activations, scaled embeddings with sinusoidal positions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Dropout(nn.Module):
    """Zeroes a share `p` of the values in training and scales up the rest.

    On CPU the mask comes from random bytes, some twenty times faster than PyTorch's `bernoulli_` draws it; `p` is then rounded to
    the nearest k/256, and the scale is that of the rounded value.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = min(round(self.p * 256), 255)
        keep = random_bytes(x.numel()).view(x.shape) >= dropped
        return x * keep.to(x.dtype).mul_(256 / (256 - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


def random_bytes(count: int) -> Tensor:
    """`count` uniform bytes (uint8) from torch's CPU generator, eight from each draw."""
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    return words.random_(-(2**63), None).view(torch.uint8)[:count]


class Embedding(nn.Module):
    """Token vectors times sqrt(d_model), plus positions: what enters the first layer."""

    def __init__(self, vocab_size: int, d_model: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))
        self.scale = math.sqrt(d_model)
        self.dropout = Dropout(dropout)
        self._sinusoids = torch.empty(0, d_model)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed ids [batch, length] at `positions` [batch, length], by default 0, 1, 2, ...; gives [batch, length, d_model]."""
        x = F.embedding(tokens, self.weight) * self.scale
        if positions is None:
            return self.dropout(x + self._table(tokens.shape[1], x)[: tokens.shape[1]])
        return self.dropout(x + self._table(int(positions.max()) + 1, x)[positions])

    def _table(self, length: int, like: Tensor) -> Tensor:
        """At least `length` rows of sinusoids; kept and grown, and no part of the weights."""
        if len(self._sinusoids) < length or self._sinusoids.device != like.device:
            rows = max(256, 1 << (length - 1).bit_length())
            self._sinusoids = sinusoids(rows, self.weight.shape[1]).to(like.device)
        return self._sinusoids


def sinusoids(length: int, d_model: int) -> Tensor:
    """Position vectors [length, d_model] of Vaswani et al. 2017, section 3.5, in Marian's layout: all sines, then all cosines."""
    rates = torch.exp(torch.arange(d_model // 2, dtype=torch.float64) * (-math.log(10_000) * 2 / d_model))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
