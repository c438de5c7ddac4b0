"""Multi-head attention over whole sequences, and one step at a time over cached keys and values."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.model.layers import Dropout


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

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` [batch, tgt_len, d_model] to `memory` [batch, src_len, d_model]; gives the shape of `query`.

        `mask` is True where attention is allowed, broadcastable to [batch, num_heads, tgt_len, src_len].
        """
        return self.attend(query, self.project(memory), mask)

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
