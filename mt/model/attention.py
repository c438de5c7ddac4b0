"""Multi-head attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.model.layers import Dropout
from mt.model.masks import Mask


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V in `num_heads` subspaces (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        # It shifts all scores of a query alike, which the softmax does not see: its gradient is zero
        # but for rounding, and Adam would make steps of full length of that.
        self.k_proj.bias.requires_grad_(False)
        self.dropout = Dropout(dropout)

    def forward(self, query: Tensor, memory: Tensor, mask: Mask) -> Tensor:
        """Attend from `query` [tokens, d_model] to `memory` [source tokens, d_model] as `mask` allows; gives the shape of `query`."""
        if query is memory:
            q, k, v = self._heads(query, self.q_proj, self.k_proj, self.v_proj)
        else:
            (q,) = self._heads(query, self.q_proj)
            k, v = self._heads(memory, self.k_proj, self.v_proj)
        return self.out_proj(mask.attend(q, k, v, self.dropout))

    def _heads(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """Several projections of `x` as one product, each [..., num_heads, head_dim]."""
        return (
            F.linear(x, *self.fused(*layers))
            .unflatten(-1, (self.num_heads, len(layers), self.head_dim))
            .unbind(-2)
        )

    def fused(self, *layers: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight and bias of several projections as one, whose output is [..., num_heads, layers, head_dim].

        The rows of the weights alternate head by head, so that each result's heads lie at one distance in memory.
        """
        shape = (self.num_heads, self.head_dim)
        weight = torch.stack([layer.weight.unflatten(0, shape) for layer in layers], dim=1).flatten(
            0, 2
        )
        bias = torch.stack([layer.bias.view(shape) for layer in layers], dim=1).flatten()
        return weight, bias
