"""Multi-head attention over whole sequences, and one step at a time over cached keys and values."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.model.layers import Dropout
from mt.model.masks import Mask


@dataclass
class KVCache:
    """Keys and values of one attention block, each [rows, num_heads, length, head_dim]."""

    keys: Tensor
    values: Tensor

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add positions at the end."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)

    def select(self, rows: Tensor) -> None:
        """Keep or repeat rows."""
        self.keys, self.values = self.keys[rows], self.values[rows]


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V in `num_heads` subspaces (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
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
        """Several projections of `x` as one product, each [..., num_heads, head_dim].

        The rows of the weights alternate head by head, so that each result's heads lie at one distance in memory.
        """
        shape = (self.num_heads, len(layers), self.head_dim)
        weight = torch.stack([layer.weight.unflatten(0, shape[::2]) for layer in layers], dim=1).flatten(0, 2)
        bias = torch.stack([layer.bias.view(shape[::2]) for layer in layers], dim=1).flatten()
        return F.linear(x, weight, bias).unflatten(-1, shape).unbind(-2)

    def project(self, memory: Tensor) -> KVCache:
        """Keys and values of `memory` [batch, src_len, d_model]."""
        return KVCache(self._split_heads(self.k_proj(memory)), self._split_heads(self.v_proj(memory)))

    def attend(self, query: Tensor, memory: KVCache, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` [batch, tgt_len, d_model] to projected keys and values."""
        q = self._split_heads(self.q_proj(query))
        if q.device.type == "cpu":
            context = self._two_products(q, memory, mask)
        else:
            dropout = self.dropout.p if self.training else 0.0
            context = F.scaled_dot_product_attention(q, memory.keys, memory.values, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(context.transpose(1, 2).flatten(2))

    def _two_products(self, q: Tensor, memory: KVCache, mask: Tensor | None) -> Tensor:
        """On CPU two batched products beat the fused kernel at sentence length: its backward pass is slow."""
        scores = (q * (1 / math.sqrt(self.head_dim))) @ memory.keys.transpose(2, 3)  # [batch, num_heads, tgt_len, src_len]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return self.dropout(scores.softmax(dim=-1)) @ memory.values

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)  # [batch, num_heads, length, head_dim]
