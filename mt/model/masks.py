"""Attention over padded or packed sequences: the one place where the two differ.

Everything else in the model sees a flat [tokens, d_model]. Padded sequences stand in it time first (the first token of each, then the
second, ...), so that their heads become the [batch x heads, length, head_dim] of a batched product without a copy.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from mt.model.layers import Dropout


class Mask(Protocol):
    """Who may attend to whom."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        """softmax(Q K^T / sqrt(head_dim)) V of heads [tokens, num_heads, head_dim]; gives [tokens, num_heads x head_dim]."""


def attention_bias(allowed: Tensor) -> Tensor:
    """What is added to scores of attention: 0 where `allowed`, else -inf."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))


@dataclass(frozen=True)
class PaddedMask:
    """Sequences padded on the right to one length, time first: token i belongs to sequence i % batch."""

    batch: int
    bias: (
        Tensor | None
    )  # 0 where attention is allowed, else -inf: [batch or 1, tgt_len or 1, src_len]

    @classmethod
    def of(cls, batch: int, allowed: Tensor | None) -> "PaddedMask":
        """From a boolean mask, True where attention is allowed, [batch or 1, tgt_len or 1, src_len]."""
        if allowed is None:
            return cls(batch, None)
        return cls(batch, attention_bias(allowed))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        """On CPU two batched products beat PyTorch's fused kernel at sentence length: its backward pass is slow."""
        if q.device.type != "cpu":
            return self._fused(q, k, v, dropout)
        num_heads, head_dim = q.shape[1:]
        q, k, v = (
            x.reshape(-1, self.batch * num_heads, head_dim).transpose(0, 1) for x in (q, k, v)
        )
        if q.dtype != torch.float32:
            # oneDNN, which multiplies these types, would copy them in each of the products that read them.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        scores, scale = (
            torch.bmm(q, k.transpose(1, 2)),
            head_dim**-0.5,
        )  # [batch x heads, tgt_len, src_len]
        if self.bias is None:
            scores = scores * scale
        else:
            bias = (
                self.bias if len(self.bias) == 1 else self.bias.repeat_interleave(num_heads, dim=0)
            )
            scores = torch.add(bias.to(scores.dtype), scores, alpha=scale)
        context = torch.bmm(dropout(scores.softmax(dim=-1)), v)
        return context.transpose(0, 1).reshape(-1, num_heads * head_dim)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        q, k, v = (
            x.unflatten(0, (-1, self.batch)).permute(1, 2, 0, 3) for x in (q, k, v)
        )  # [batch, heads, length, head_dim]
        bias = None if self.bias is None else self.bias[:, None].to(q.dtype)
        p = dropout.p if dropout.training else 0.0
        return (
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p)
            .permute(2, 0, 1, 3)
            .flatten(2)
            .flatten(0, 1)
        )


@dataclass(frozen=True)
class PackedMask:
    """Sequences one after the other, without padding: flash attention on CUDA, which takes half precision and no attention dropout."""

    tgt_offsets: Tensor  # [batch + 1] int32, where each query's sequence begins, and the end
    src_offsets: Tensor  # the same of keys and values
    max_tgt_len: int
    max_src_len: int
    causal: bool

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        """Within each sequence alone."""
        assert not (dropout.training and dropout.p), (
            "flash attention has no dropout; such batches are padded"
        )
        kernel = varlen_attn if q.device.type == "cuda" else varlen_reference
        window = (-1, 0) if self.causal else (-1, -1)
        offsets = self.tgt_offsets, self.src_offsets
        context = kernel(q, k, v, *offsets, self.max_tgt_len, self.max_src_len, window_size=window)
        assert isinstance(context, Tensor)
        return context.flatten(1)


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
) -> Tensor:
    """`varlen_attn` for devices without its kernel, sequence by sequence: to test with, not to be fast."""
    tgt_lens, src_lens = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    sequences = zip(query.split(tgt_lens), key.split(src_lens), value.split(src_lens), strict=True)
    causal = window_size == (-1, 0)
    heads_first = ([x.transpose(0, 1) for x in sequence] for sequence in sequences)
    return torch.cat(
        [
            F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1)
            for q, k, v in heads_first
        ]
    )
