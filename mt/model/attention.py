"""Multi-head attention, and the different ways to compute it.

A layer projects its input to queries, keys and values, and passes them to an `Attention`. There
are several kinds of `Attention`, which look the same to the layer: for padded sentences, for packed
sentences, and one that records its weights. Two more are defined elsewhere: one uses the decoder's
cache (mt.model.state), and one belongs to an exported graph (mt.convert.onnx).

Layers see tokens as a flat [tokens, d_model]. Padded sentences are stored time first (the first
token of every sentence, then the second token of every sentence, ...). A batched product needs the
heads as [batch x heads, length, head_dim], and with this layout they need not be copied.
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
    """Computes attention for all layers of a stack, which call `attend` one after the other."""

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Return softmax(Q K^T x scale) V [tokens, num_heads x head_dim].

        `q`, `k` and `v` are [tokens, num_heads, head_dim]. An attention with stored keys and values
        ignores `k` and `v`.
        """


class MultiHeadAttention(nn.Module):
    """softmax(Q K^T / sqrt(head_dim)) V in each of `num_heads` heads (Vaswani et al. 2017, 3.2)."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, d_model // num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(d_model, d_model)
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)
        # The key bias adds the same number to all scores of a query, which softmax cancels. Its
        # gradient is just rounding error, but Adam would turn it into full-size steps.
        self.k_proj.bias.requires_grad_(False)
        self.dropout = Dropout(dropout)
        self.packed: dict[
            str, Linear
        ] = {}  # maps the letters of packed projections to the layer, see `pack`

    def forward(self, query: Tensor, memory: Tensor | None, attention: Attention) -> Tensor:
        """Attend from `query` [tokens, d_model] to `memory` [source tokens, d_model].

        `memory` is None if `attention` has stored keys and values. The result has the shape of
        `query`.
        """
        if query is memory:
            q, k, v = self.heads(query, "qkv")
        else:
            (q,) = self.heads(query, "q")
            k, v = (q, q) if memory is None else self.heads(memory, "kv")
        context: Tensor = self.out_proj(attention.attend(q, k, v, self.scale, self.dropout))
        return context

    def heads(self, x: Tensor, names: str) -> tuple[Tensor, ...]:
        """Compute several projections of `x` [tokens, d_model] in one product.

        `names` has one letter (q, k, v) per projection. The results are [tokens, num_heads,
        head_dim].
        """
        project = self.packed.get(names)
        product = F.linear(x, *self.fused(names)) if project is None else project(x)
        return product.view(-1, self.num_heads, len(names), self.head_dim).unbind(2)

    def fused(self, names: str) -> tuple[Tensor, Tensor]:
        """Return a single weight and a single bias that compute several projections.

        Their output is [..., num_heads, projections, head_dim]. The projections are next to each
        other in each head, so the heads of one projection have a constant stride in memory.
        """
        layers: list[nn.Linear] = [getattr(self, f"{name}_proj") for name in names]
        shape = (self.num_heads, self.head_dim)
        weight = torch.stack([layer.weight.unflatten(0, shape) for layer in layers], dim=1)
        bias = torch.stack([layer.bias.view(shape) for layer in layers], dim=1)
        return weight.flatten(0, 2), bias.flatten()

    def pack(self, dtype: torch.dtype, names: tuple[str, ...], scale_queries: bool) -> None:
        """Replace the input projections by packed ones, to translate faster.

        `names` lists the projections that are computed together. With `scale_queries`, the query
        weights are multiplied by the scale of attention.
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
    """Attention over sentences that are padded on the right to the same length.

    Time comes first: token i belongs to sentence i % batch.
    """

    batch: int
    # [batch or 1, tgt_len or 1, src_len]: 0 where attention is allowed, else -inf; None: all 0.
    bias: Tensor | None

    @classmethod
    def of(cls, batch: int, allowed: Tensor | None) -> "PaddedAttention":
        """Build from a mask that is True where attention is allowed. None allows it everywhere.

        The mask is [batch or 1, tgt_len or 1, src_len].
        """
        return cls(batch, None if allowed is None else attention_bias(allowed))

    @classmethod
    def over(cls, src: Tensor, src_mask: Tensor | None) -> "PaddedAttention":
        """Return attention to sources [batch, src_len]; `src_mask` is False for padding."""
        return cls.of(len(src), None if src_mask is None else src_mask[:, None])

    @classmethod
    def causal(cls, ids: Tensor) -> "PaddedAttention":
        """Return the self-attention for targets `ids` [batch, length], without looking ahead.

        Targets are padded on the right, so this also hides padding from real tokens.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        return cls.of(len(ids), (steps <= steps[:, None])[None])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """See `Attention.attend`."""
        # On a CPU, two batched products are faster than PyTorch's fused kernel for sentences,
        # because the backward pass of the kernel is slow.
        if q.device.type != "cpu":
            return self._fused(q, k, v, scale, dropout)
        num_heads, head_dim = q.shape[1:]
        q, k, v = (
            x.reshape(-1, self.batch * num_heads, head_dim).transpose(0, 1) for x in (q, k, v)
        )
        if q.dtype != torch.float32:
            # For these types, oneDNN does the products, and would copy strided operands every time.
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
        """Reshape heads [tokens, num_heads, head_dim] to [batch, num_heads, length, head_dim]."""
        return x.unflatten(0, (-1, self.batch)).permute(1, 2, 0, 3)

    def flat(self, context: Tensor) -> Tensor:
        """Reshape [batch, num_heads, length, head_dim] to [tokens, num_heads x head_dim]."""
        return context.permute(2, 0, 1, 3).flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class RecordedAttention:
    """Like `padded`, but also passes its weights to a function.

    `watch` is called for each layer, with weights [batch, num_heads, tgt_len, src_len].
    """

    padded: PaddedAttention
    watch: Callable[[Tensor], object]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """See `Attention.attend`. Does not use a fused kernel, because those return no weights."""
        q, k, v = (self.padded.by_sentence(x) for x in (q, k, v))
        scores = q @ k.transpose(2, 3) * scale
        if self.padded.bias is not None:
            scores = scores + self.padded.bias[:, None].to(scores.dtype)
        weights = scores.softmax(dim=-1)
        self.watch(weights)
        return self.padded.flat(dropout(weights) @ v)


@dataclass(frozen=True)
class PackedAttention:
    """Attention over sentences that are stored one after the other, without padding.

    On CUDA this is flash attention, which needs half precision and has no attention dropout.
    """

    tgt_offsets: (
        Tensor  # [batch + 1] int32: start of each sentence in the queries, then the total length
    )
    src_offsets: Tensor  # the same for keys and values
    max_tgt_len: int
    max_src_len: int
    causal: bool

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """See `Attention.attend`. Tokens attend only to tokens of their own sentence."""
        assert not (dropout.training and dropout.p), (
            "flash attention has no dropout, so batches with attention dropout must be padded"
        )
        kernel = varlen_attn if q.device.type == "cuda" else varlen_reference
        window = (-1, 0) if self.causal else (-1, -1)
        assert scale == q.shape[-1] ** -0.5, "the kernel's default scale"
        lengths = self.tgt_offsets, self.src_offsets, self.max_tgt_len, self.max_src_len
        context = kernel(q, k, v, *lengths, window_size=window)
        assert isinstance(context, Tensor)
        return context.flatten(1)


def attention_bias(allowed: Tensor) -> Tensor:
    """Return the bias to add to attention scores: 0 where `allowed`, else -inf."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, float("-inf"))
