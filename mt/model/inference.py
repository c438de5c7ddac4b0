"""The Transformer as it translates: without gradients and dropout, weights fused and packed once, the decoder one step at a time.

What is unusual here: a decoder step takes all hypotheses of a sentence together (see `mt.model.state`); self-attention's queries, keys and
values are one product, and the scale of attention is in the weights of the queries.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.model.attention import MultiHeadAttention
from mt.model.layers import ACTIVATIONS, Dropout
from mt.model.linear import Linear, pack_linear
from mt.model.masks import PaddedMask
from mt.model.state import FIRST_CAPACITY, DecoderState, LayerCache
from mt.model.transformer import DecoderLayer, EncoderLayer, Layer, Transformer

NO_DROPOUT = Dropout(0.0).eval()


class InferenceModel:
    """The weights of a `Transformer` as they are now, in fp32, bf16, fp16 or (on a CPU) int8; the residual stream stays in fp32.

    To be built anew when the weights change: some of them are copies.
    """

    @torch.no_grad()
    def __init__(self, model: Transformer, dtype: torch.dtype = torch.float32) -> None:
        self.src_embedding, self.tgt_embedding = (
            model.encoder.embed_tokens,
            model.decoder.embed_tokens,
        )
        self.encoder_layers = [_EncoderLayer(layer, dtype) for layer in model.encoder.layers]  # type: ignore[arg-type]
        self.decoder_layers = [_DecoderLayer(layer, dtype) for layer in model.decoder.layers]  # type: ignore[arg-type]
        self.encoder_norm, self.decoder_norm = model.encoder.layer_norm, model.decoder.layer_norm
        self.output_projection = pack_linear(model.output_weight, model.output_bias, dtype)

    def encode(self, src: Tensor, mask: PaddedMask) -> Tensor:
        """Memory [src_len x batch, d_model], time first, of ids `src` [batch, src_len]."""
        batch, src_len = src.shape
        positions = torch.arange(src_len, device=src.device).repeat_interleave(batch)
        x = self.src_embedding.lookup(src.t().flatten(), positions, src_len)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return self.encoder_norm(x)

    def initial_state(self, src: Tensor, src_mask: Tensor) -> DecoderState:
        """Encode `src` [sentences, src_len]; `src_mask` of the same shape is True where a token stands."""
        mask = PaddedMask.of(len(src), None if src_mask.all() else src_mask[:, None])
        memory = self.encode(src, mask)
        layers = [layer.cache(memory, len(src)) for layer in self.decoder_layers]
        bias = None if mask.bias is None else mask.bias[:, None]
        return DecoderState(
            layers, bias, path=torch.zeros(len(src), 1, 0, dtype=torch.bool, device=src.device)
        )

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Logits [sentences, beams, tgt_vocab_size] after one more token [sentences, beams] of each hypothesis; `state` moves on.

        A search may begin with one beam: all hypotheses of a sentence begin alike.
        """
        x = self.tgt_embedding.lookup(tokens.flatten(), state.length, state.length + 1)
        places, bias = state.advance(tokens.shape[1])
        for layer, cache in zip(self.decoder_layers, state.layers, strict=True):
            x = layer.step(x, cache, state, places, bias)
        return self.output_projection(self.decoder_norm(x)).unflatten(0, tokens.shape)


class _Block:
    """What encoder and decoder layers share; x [rows, d_model]."""

    def __init__(self, layer: Layer, dtype: torch.dtype) -> None:
        self.pre_norm, self.num_heads = layer.pre_norm, layer.self_attn.num_heads
        self.self_attn_layer_norm, self.final_layer_norm = (
            layer.self_attn_layer_norm,
            layer.final_layer_norm,
        )
        self.fc1, self.fc2 = (
            pack_linear(fc.weight, fc.bias, dtype) for fc in (layer.fc1, layer.fc2)
        )
        name = layer.activation.name
        self.activation = torch.relu_ if name == "relu" else ACTIVATIONS[name]

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.residual(
            x, self.final_layer_norm, lambda y: self.fc2(self.activation(self.fc1(y)))
        )

    def residual(self, x: Tensor, norm: nn.LayerNorm, block: Linear) -> Tensor:
        """x + block(x), with the layer norm before the block or after the sum."""
        return x + block(norm(x)) if self.pre_norm else norm(x + block(x))


class _EncoderLayer(_Block):
    def __init__(self, layer: EncoderLayer, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        attn = layer.self_attn
        self.qkv = pack_linear(*attn.fused(attn.q_proj, attn.k_proj, attn.v_proj), dtype)
        self.out = pack_linear(attn.out_proj.weight, attn.out_proj.bias, dtype)

    def __call__(self, x: Tensor, mask: PaddedMask) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            q, k, v = self.qkv(y).unflatten(1, (self.num_heads, 3, -1)).unbind(2)
            return self.out(mask.attend(q, k, v, NO_DROPOUT))

        return self.feed_forward(self.residual(x, self.self_attn_layer_norm, attend))


class _DecoderLayer(_Block):
    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        attn, across = layer.self_attn, layer.encoder_attn
        self.head_dim = attn.head_dim
        self.encoder_attn_layer_norm = layer.encoder_attn_layer_norm
        self.qkv = pack_linear(*_with_scaled_queries(attn, attn.k_proj, attn.v_proj), dtype)
        self.out = pack_linear(attn.out_proj.weight, attn.out_proj.bias, dtype)
        self.q = pack_linear(*_with_scaled_queries(across), dtype)
        self.kv = pack_linear(*across.fused(across.k_proj, across.v_proj), dtype)
        self.cross_out = pack_linear(across.out_proj.weight, across.out_proj.bias, dtype)

    def cache(self, memory: Tensor, sentences: int) -> LayerCache:
        """Keys and values of `memory` [src_len x sentences, d_model], and room for those of hypotheses."""
        kv = self.kv(memory).view(-1, sentences, self.num_heads, 2, self.head_dim)
        src_keys, src_values = kv.permute(3, 1, 2, 0, 4).contiguous()
        empty = kv.new_zeros(2, sentences, self.num_heads, FIRST_CAPACITY, self.head_dim)
        return LayerCache(empty[0], empty[1], src_keys, src_values)

    def step(
        self, x: Tensor, cache: LayerCache, state: DecoderState, places: Tensor, bias: Tensor | None
    ) -> Tensor:
        """One token of every hypothesis, x [sentences x beams, d_model]; `places` and `bias` are those of `state.advance`."""
        sentences, beams, num_cells = state.path.shape

        def attend(y: Tensor) -> Tensor:
            q, k, v = self.qkv(y).view(sentences, beams, self.num_heads, 3, self.head_dim).unbind(3)
            cache.keys.view(-1, self.head_dim).index_copy_(0, places, k.reshape(-1, self.head_dim))
            cache.values.view(-1, self.head_dim).index_copy_(
                0, places, v.reshape(-1, self.head_dim)
            )
            return self.out(
                _attend(q, cache.keys[:, :, :num_cells], cache.values[:, :, :num_cells], bias)
            )

        def attend_across(y: Tensor) -> Tensor:
            q = self.q(y).view(sentences, beams, self.num_heads, self.head_dim)
            return self.cross_out(_attend(q, cache.src_keys, cache.src_values, state.src_bias))

        x = self.residual(x, self.self_attn_layer_norm, attend)
        return self.feed_forward(self.residual(x, self.encoder_attn_layer_norm, attend_across))


def _with_scaled_queries(attn: MultiHeadAttention, *others: nn.Linear) -> tuple[Tensor, Tensor]:
    """The projection of the queries divided by sqrt(head_dim), fused with others."""
    weight, bias = attn.fused(attn.q_proj, *others)
    for fused in (weight, bias):
        fused.unflatten(0, (attn.num_heads, 1 + len(others), attn.head_dim))[:, 0] *= (
            attn.head_dim**-0.5
        )
    return weight, bias


def _attend(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(Q K^T + bias) V of q [sentences, beams, num_heads, head_dim]; gives [sentences x beams, d_model].

    `keys` and `values` are [sentences, num_heads, length, head_dim], `bias` [sentences, 1, beams or 1, length].
    """
    q = q.transpose(1, 2)
    if (
        q.device.type == "cpu"
    ):  # here two batched products are as fast as the fused kernel, and take any strides
        scores = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(
            0, q.shape[:2]
        )
        if bias is not None:
            scores = scores.add_(bias)
        context = torch.bmm(scores.softmax(dim=-1).flatten(0, 1), values.flatten(0, 1)).unflatten(
            0, q.shape[:2]
        )
    else:
        context = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=None if bias is None else bias.to(q.dtype), scale=1.0
        )
    return context.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
