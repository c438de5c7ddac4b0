"""Multi-head attention, and the ways to attend: padded or packed sentences, and in the open.

A layer projects queries, keys and values and hands them to an `Attention`; it does not know which.
Two more ways belong to others: over the decoder's caches (mt.model.state), and in a graph
(mt.convert.onnx). Everything outside sees a flat [tokens, d_model]. Padded sentences stand in it
time first (the first token of each, then the second, ...), so that their heads become the
[batch x heads, length, head_dim] of a batched product without a copy.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from mt.model.kernels import varlen_reference
from mt.model.layers import Dropout
from mt.model.linear import Linear, pack_linear


class Attention(Protocol):
    """How the layers of a stack attend; each calls `attend` once, the first layer first."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """softmax(Q K^T x scale) V of heads [tokens, num_heads, head_dim]; gives [tokens, num_heads
        x head_dim].

        An attention that has keys and values of its own looks at no others.
        """


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V in `num_heads` subspaces (Vaswani et al. 2017, section
    3.2).
    """

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        # It shifts all scores of a query alike, which the softmax does not see: its gradient is
        # zero but for rounding, and Adam would make steps of full length of that.
        self.k_proj.bias.requires_grad_(False)
        self.dropout = Dropout(dropout)
        self.packed: dict[str, Linear] = {}  # projections by their letters, once they are packed

    def forward(self, query: Tensor, memory: Tensor | None, attention: Attention) -> Tensor:
        """Attend from `query` [tokens, d_model] to `memory` [source tokens, d_model], or, without
        it, to what `attention` has.

        Gives the shape of `query`.
        """
        if query is memory:
            q, k, v = self.heads(query, "qkv")
        else:
            (q,) = self.heads(query, "q")
            k, v = (q, q) if memory is None else self.heads(memory, "kv")
        context: Tensor = self.out_proj(attention.attend(q, k, v, self.scale, self.dropout))
        return context

    def heads(self, x: Tensor, names: str) -> tuple[Tensor, ...]:
        """The projections `names` (letters of qkv) of `x` [tokens, d_model] as one product, each
        [tokens, num_heads, head_dim].
        """
        project = self.packed.get(names)
        product = F.linear(x, *self.fused(names)) if project is None else project(x)
        return product.view(-1, self.num_heads, len(names), self.head_dim).unbind(2)

    def fused(self, names: str) -> tuple[Tensor, Tensor]:
        """Weight and bias of several projections as one, whose output is [..., num_heads,
        projections, head_dim].

        The rows of the weights alternate head by head, so that each result's heads lie at one
        distance in memory.
        """
        layers: list[nn.Linear] = [getattr(self, f"{name}_proj") for name in names]
        shape = (self.num_heads, self.head_dim)
        weight = torch.stack([layer.weight.unflatten(0, shape) for layer in layers], dim=1)
        bias = torch.stack([layer.bias.view(shape) for layer in layers], dim=1)
        return weight.flatten(0, 2), bias.flatten()

    def pack(self, dtype: torch.dtype, names: tuple[str, ...], scale_queries: bool) -> None:
        """Let packed projections take the place of the layers; `names` says which of them are one
        product.

        With `scale_queries` the scale of attention goes into the weights of the queries.
        """
        for group in names:
            weight, bias = self.fused(group)
            if scale_queries and group[0] == "q":
                for fused in (weight, bias):
                    fused.unflatten(0, (self.num_heads, len(group), -1))[:, 0] *= self.scale
            self.packed[group] = pack_linear(weight, bias, dtype)
        if scale_queries:
            self.scale = 1.0
        for name in "qkv":
            delattr(self, f"{name}_proj")


@dataclass(frozen=True)
class PaddedAttention:
    """Over sentences padded on the right to one length, time first: token i belongs to sentence i %
    batch.
    """

    batch: int
    # 0 where attention is allowed, else -inf: [batch or 1, tgt_len or 1, src_len].
    bias: Tensor | None

    @classmethod
    def of(cls, batch: int, allowed: Tensor | None) -> "PaddedAttention":
        """From a boolean mask, True where attention is allowed, [batch or 1, tgt_len or 1,
        src_len].
        """
        return cls(batch, None if allowed is None else attention_bias(allowed))

    @classmethod
    def over(cls, src: Tensor, src_mask: Tensor | None) -> "PaddedAttention":
        """To sources [batch, src_len], where `src_mask` of the same shape is True."""
        return cls.of(len(src), None if src_mask is None else src_mask[:, None])

    @classmethod
    def causal(cls, ids: Tensor) -> "PaddedAttention":
        """Of targets `ids` [batch, length]: nobody looks ahead. As they are padded on the right, no
        real position sees padding.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        return cls.of(len(ids), (steps <= steps[:, None])[None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """On CPU two batched products beat PyTorch's fused kernel at sentence length: its backward
        pass is slow.
        """
        if q.device.type != "cpu":
            return self._fused(q, k, v, scale, dropout)
        num_heads, head_dim = q.shape[1:]
        q, k, v = (
            x.reshape(-1, self.batch * num_heads, head_dim).transpose(0, 1) for x in (q, k, v)
        )
        if q.dtype != torch.float32:
            # oneDNN, which multiplies these types, would copy them in each of the products that
            # read them.
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        scores = torch.bmm(q, k.transpose(1, 2))  # [batch x heads, tgt_len, src_len]
        if self.bias is None:
            scores = scores * scale
        else:
            bias = (
                self.bias if len(self.bias) == 1 else self.bias.repeat_interleave(num_heads, dim=0)
            )
            scores = torch.add(bias.to(scores.dtype), scores, alpha=scale)
        context = torch.bmm(dropout(scores.softmax(dim=-1)), v)
        return context.transpose(0, 1).reshape(-1, num_heads * head_dim)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        q, k, v = (self.by_sentence(x) for x in (q, k, v))
        bias = None if self.bias is None else self.bias[:, None].to(q.dtype)
        p = dropout.p if dropout.training else 0.0
        return self.flat(
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p, scale=scale)
        )

    def by_sentence(self, x: Tensor) -> Tensor:
        """Heads [tokens, num_heads, head_dim] as [batch, num_heads, length, head_dim]."""
        return x.unflatten(0, (-1, self.batch)).permute(1, 2, 0, 3)

    def flat(self, context: Tensor) -> Tensor:
        """What was attended to [batch, num_heads, length, head_dim] as [tokens, num_heads x
        head_dim].
        """
        return context.permute(2, 0, 1, 3).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class RecordedAttention:
    """As `padded` has it, in the open; `watch` sees the weights [batch, num_heads, tgt_len,
    src_len] of each layer.
    """

    padded: PaddedAttention
    watch: Callable[[Tensor], object]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Without a kernel that keeps its weights to itself."""
        q, k, v = (self.padded.by_sentence(x) for x in (q, k, v))
        scores = q @ k.transpose(2, 3) * scale
        if self.padded.bias is not None:
            scores = scores + self.padded.bias[:, None].to(scores.dtype)
        weights = scores.softmax(dim=-1)
        self.watch(weights)
        return self.padded.flat(dropout(weights) @ v)


@dataclass(frozen=True)
class PackedAttention:
    """Over sentences one after the other, without padding: flash attention on CUDA, which takes
    half precision and no attention dropout.
    """

    tgt_offsets: Tensor  # [batch + 1] int32, where each query's sentence begins, and the end
    src_offsets: Tensor  # the same of keys and values
    max_tgt_len: int
    max_src_len: int
    causal: bool

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Within each sentence alone."""
        assert not (dropout.training and dropout.p), (
            "flash attention has no dropout; such batches are padded"
        )
        kernel = varlen_attn if q.device.type == "cuda" else varlen_reference
        window = (-1, 0) if self.causal else (-1, -1)
        assert scale == q.shape[-1] ** -0.5, "the kernel's own"
        lengths = self.tgt_offsets, self.src_offsets, self.max_tgt_len, self.max_src_len
        context = kernel(q, k, v, *lengths, window_size=window)
        assert isinstance(context, Tensor)
        return context.flatten(1)


def attention_bias(allowed: Tensor) -> Tensor:
    """What is added to scores of attention: 0 where `allowed`, else -inf."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))
