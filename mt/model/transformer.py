"""The encoder-decoder Transformer (Vaswani et al. 2017), with pre-norm or post-norm layers.

What is unusual here:

  - Parameters have the names that fairseq and Hugging Face's Marian have in common, which keeps
    exports simple.
  - The position vectors are laid out like Marian's.
  - `forward` does not apply the output projection, so that the loss can fuse both.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mt.config import ModelConfig
from mt.model.attention import Attention, MultiHeadAttention, PackedAttention, PaddedAttention
from mt.model.layers import Activation, Dropout, Embedding
from mt.model.linear import Linear, pack_linear


class Layer(nn.Module):
    """What encoder and decoder layers have in common: self-attention, feed-forward block, norms."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm == "pre"
        self.self_attn = MultiHeadAttention(
            config.d_model, config.num_heads, config.attention_dropout
        )
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.d_ff)
        self.fc2 = nn.Linear(config.d_ff, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        self.activation = Activation(config.activation, config.activation_dropout)

    def residual(self, x: Tensor, norm: nn.LayerNorm, block: Callable[[Tensor], Tensor]) -> Tensor:
        """Return x + dropout(block(x)), with a layer norm before the block or after the sum."""
        if self.pre_norm:
            return self.dropout.add(x, block(norm(x)))
        return norm(self.dropout.add(x, block(x)))

    def feed_forward(self, x: Tensor) -> Tensor:
        """Apply two linear layers with an activation between them (section 3.3 of the paper)."""
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(Layer):
    """Self-attention, followed by a feed-forward block."""

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """Return the output [tokens, d_model] of the layer for `x` [tokens, d_model]."""
        x = self.residual(x, self.self_attn_layer_norm, lambda y: self.self_attn(y, y, attention))
        return self.residual(x, self.final_layer_norm, self.feed_forward)


class DecoderLayer(Layer):
    """Masked self-attention, attention to the source, and a feed-forward block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.encoder_attn = MultiHeadAttention(
            config.d_model, config.num_heads, config.attention_dropout
        )
        self.encoder_attn_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self, x: Tensor, memory: Tensor | None, attention: Attention, cross: Attention
    ) -> Tensor:
        """Return the output [tokens, d_model] of the layer for `x` [tokens, d_model].

        `memory` is [source tokens, d_model], or None if `cross` has stored its keys and values.
        """
        x = self.residual(x, self.self_attn_layer_norm, lambda y: self.self_attn(y, y, attention))
        x = self.residual(
            x, self.encoder_attn_layer_norm, lambda y: self.encoder_attn(y, memory, cross)
        )
        return self.residual(x, self.final_layer_norm, self.feed_forward)


class Encoder(nn.Module):
    """An embedding layer and a stack of encoder layers."""

    def __init__(self, config: ModelConfig, embedding: Embedding) -> None:
        super().__init__()
        self.recompute = False
        self.embed_tokens = embedding
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()

    def forward(self, src: Tensor, positions: Tensor, length: int, attention: Attention) -> Tensor:
        """Encode ids `src` [tokens] to [tokens, d_model]. `positions` are below `length`."""
        x = self.embed_tokens(src, positions, length)
        for layer in self.layers:
            x = _run(layer, self.recompute, x, attention)
        return self.layer_norm(x)


class Decoder(nn.Module):
    """An embedding layer and a stack of decoder layers."""

    def __init__(self, config: ModelConfig, embedding: Embedding) -> None:
        super().__init__()
        self.recompute = False
        self.embed_tokens = embedding
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model) if config.norm == "pre" else nn.Identity()

    def forward(
        self,
        tgt_in: Tensor,
        positions: Tensor | int,
        length: int,
        memory: Tensor | None,
        attention: Attention,
        cross: Attention,
    ) -> Tensor:
        """Return the hidden states [tokens, d_model] of ids `tgt_in` [tokens].

        `positions` are below `length`. `memory` is explained in `DecoderLayer`.
        """
        x = self.embed_tokens(tgt_in, positions, length)
        for layer in self.layers:
            x = _run(layer, self.recompute, x, memory, attention, cross)
        return self.layer_norm(x)


class Transformer(nn.Module):
    """Encoder, decoder and output projection."""

    def __init__(self, config: ModelConfig, src_vocab_size: int, tgt_vocab_size: int) -> None:
        super().__init__()
        if config.tie_embeddings == "all" and src_vocab_size != tgt_vocab_size:
            raise ValueError("tie_embeddings: all needs a joint vocabulary")
        dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        src_embedding = Embedding(src_vocab_size, config.d_model, dropout)
        tgt_embedding = (
            src_embedding
            if config.tie_embeddings == "all"
            else Embedding(tgt_vocab_size, config.d_model, dropout)
        )
        self.config = config
        self.encoder = Encoder(config, src_embedding)
        self.decoder = Decoder(config, tgt_embedding)
        is_untied = config.tie_embeddings == "none"
        self.output_projection = (
            nn.Linear(config.d_model, tgt_vocab_size, bias=False) if is_untied else None
        )
        self.output_bias = nn.Parameter(torch.zeros(tgt_vocab_size)) if config.output_bias else None
        self.packed_output: Linear | None = None
        self._initialize()

    def _initialize(self) -> None:
        """Draw initial weights as fairseq does.

        Linear layers use Xavier initialization, embeddings and output N(0, 1/d_model). Biases are
        zero.
        """
        for module in self.modules():
            if isinstance(module, Embedding) or module is self.output_projection:
                nn.init.normal_(module.weight, std=1 / math.sqrt(self.config.d_model))
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, src: Tensor, src_mask: Tensor | None, tgt_in: Tensor) -> Tensor:
        """Return the hidden states [batch, tgt_len, d_model], which `project` turns into logits.

        `src` [batch, src_len] and `tgt_in` [batch, tgt_len] are ids. `src_mask` [batch, src_len]
        is False for padding.
        """
        source = PaddedAttention.over(src, src_mask)
        causal = PaddedAttention.causal(tgt_in)
        return self.attending(src, tgt_in, source, causal, source)

    def attending(
        self, src: Tensor, tgt_in: Tensor, encoder: Attention, decoder: Attention, cross: Attention
    ) -> Tensor:
        """Like `forward`, with the given attention for encoder, decoder and cross-attention."""
        memory, tgt_len = self.encode_flat(src, encoder), tgt_in.shape[1]
        hidden = self.decoder(*_time_first(tgt_in), tgt_len, memory, decoder, cross)
        return hidden.unflatten(0, (tgt_len, len(src))).transpose(0, 1)

    def encode_flat(self, src: Tensor, attention: Attention) -> Tensor:
        """Encode `src` [batch, src_len] to [src_len x batch, d_model], time first."""
        memory: Tensor = self.encoder(*_time_first(src), src.shape[1], attention)
        return memory

    def packed(
        self,
        src: Tensor,
        src_offsets: Tensor,
        max_src_len: int,
        tgt_in: Tensor,
        tgt_offsets: Tensor,
        max_tgt_len: int,
    ) -> Tensor:
        """Like `forward`, for sentences that are stored one after the other, without padding.

        Ids are [tokens], offsets are [batch + 1] int32, and hidden states are [tokens, d_model].
        """
        source = PackedAttention(src_offsets, src_offsets, max_src_len, max_src_len, causal=False)
        memory = self.encoder(src, _positions(src, src_offsets), max_src_len, source)
        causal = PackedAttention(tgt_offsets, tgt_offsets, max_tgt_len, max_tgt_len, causal=True)
        across = PackedAttention(tgt_offsets, src_offsets, max_tgt_len, max_src_len, causal=False)
        return self.decoder(
            tgt_in, _positions(tgt_in, tgt_offsets), max_tgt_len, memory, causal, across
        )

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """Encode ids `src` [batch, src_len] to [batch, src_len, d_model]."""
        source = PaddedAttention.over(src, src_mask)
        return self.encode_flat(src, source).unflatten(0, src.shape[::-1]).transpose(0, 1)

    def recompute(self, recompute: bool) -> None:
        """Switch gradient checkpointing on or off (Chen et al. 2016).

        If it is on, training stores only the input of each layer, and computes the rest again in
        the backward pass.
        """
        self.encoder.recompute = self.decoder.recompute = recompute

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., tgt_vocab_size] of hidden states [..., d_model]."""
        if self.packed_output is not None:
            return self.packed_output(hidden)
        return F.linear(hidden, self.output_weight, self.output_bias)

    @property
    def layers(self) -> list[nn.Module]:
        """All encoder layers, followed by all decoder layers."""
        return [*self.encoder.layers, *self.decoder.layers]

    @property
    def output_weight(self) -> Tensor:
        """The output matrix [tgt_vocab_size, d_model], or the target embedding if they are tied."""
        return (
            self.decoder.embed_tokens.weight
            if self.output_projection is None
            else self.output_projection.weight
        )


def for_translating(model: Transformer, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return a copy of a model whose linear layers are packed, to translate faster.

    `dtype` is fp32, bf16, fp16 or, on a CPU, int8; the residual stream stays in fp32. Norms and
    embeddings are shared with the model; the other weights are copied.
    """
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    ready = copy.deepcopy(model, shared).eval()
    with torch.no_grad():
        ready.packed_output = pack_linear(model.output_weight, model.output_bias, dtype)
        ready.output_projection = None
        for layer in ready.encoder.layers:
            layer.self_attn.pack(dtype, ("qkv",), scale_queries=False)  # type: ignore
        for layer in ready.decoder.layers:
            layer.self_attn.pack(dtype, ("qkv",), scale_queries=True)  # type: ignore
            layer.encoder_attn.pack(dtype, ("q", "kv"), scale_queries=True)  # type: ignore
        for module in list(ready.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    delattr(module, name)
                    setattr(module, name, pack_linear(child.weight, child.bias, dtype))
    return ready


def _time_first(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return (ids [batch, length] as [length x batch], time first; their positions)."""
    batch, length = ids.shape
    positions = torch.arange(length, device=ids.device)[:, None].expand(length, batch)
    return ids.t().flatten(), positions.flatten()


def _run(layer: nn.Module, recompute: bool, *args: Any) -> Tensor:
    if recompute and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False)
    return layer(*args)


def _positions(ids: Tensor, offsets: Tensor) -> Tensor:
    """Return the position of each packed id in its sentence."""
    # `output_size` is given so that the host does not wait for the GPU to compute it.
    starts = offsets[:-1].repeat_interleave(offsets.diff(), output_size=len(ids))
    return torch.arange(len(ids), device=ids.device) - starts


def build_model(
    config: ModelConfig, src_vocab_size: int, tgt_vocab_size: int, seed: int
) -> Transformer:
    """Return a new model with weights drawn from `seed`."""
    torch.manual_seed(seed)
    return Transformer(config, src_vocab_size, tgt_vocab_size)
