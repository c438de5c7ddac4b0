"""Who attends to whom: the weights of attention, which a translation computes and throws away, kept to be looked at.

The model runs as it is; a mask that computes its weights openly stands where a padded one would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mt.model.layers import Dropout
from mt.model.masks import Mask, PaddedMask
from mt.model.transformer import Transformer


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of one sentence pair in fp32 on the CPU; each row, the last dimension, sums to 1."""

    encoder: Tensor  # [encoder_layers, num_heads, src_len, src_len]
    decoder: Tensor  # [decoder_layers, num_heads, tgt_len, tgt_len], zero after the diagonal
    cross: Tensor  # [decoder_layers, num_heads, tgt_len, src_len]


@dataclass(frozen=True)
class WatchedMask:
    """Attention as `padded` has it; `watch` sees the weights [batch, num_heads, tgt_len, src_len] of each layer."""

    padded: PaddedMask
    watch: Callable[[Tensor], object]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        """In the open: no kernel that keeps its weights to itself."""
        q, k, v = (
            x.unflatten(0, (-1, self.padded.batch)).permute(1, 2, 0, 3) for x in (q, k, v)
        )  # [batch, heads, length, head_dim]
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if self.padded.bias is not None:
            scores = scores + self.padded.bias[:, None].to(scores.dtype)
        weights = scores.softmax(dim=-1)
        self.watch(weights)
        return (dropout(weights) @ v).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)


@torch.no_grad()
def attention_maps(
    model: Transformer, src_ids: Sequence[int], tgt_ids: Sequence[int]
) -> AttentionMaps:
    """All weights of one pair of ids: the source with its end of sentence, the target with its beginning."""
    device = model.output_weight.device
    src, tgt_in = (torch.tensor(ids, device=device) for ids in (src_ids, tgt_ids))
    seen: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    masks = (
        PaddedMask.of(1, None),
        _causal_mask(1, len(tgt_in), tgt_in.device),
        PaddedMask.of(1, None),
    )
    encoder, causal, cross = (
        WatchedMask(mask, weights.append) for mask, weights in zip(masks, seen, strict=True)
    )
    masked_forward(model, src[None], tgt_in[None], encoder, causal, cross)
    return AttentionMaps(*(torch.cat(weights).float().cpu() for weights in seen))


@torch.no_grad()
def cross_attention(
    model: Transformer, src: Tensor, src_mask: Tensor, tgt_in: Tensor, layer: int
) -> Tensor:
    """Weights [batch, tgt_len, src_len] of the decoder's attention to the source in `layer`, the mean over its heads.

    `src` [batch, src_len], `src_mask` of the same shape and `tgt_in` [batch, tgt_len] are those of `Transformer.forward`.
    """
    seen: list[Tensor] = []
    source = PaddedMask.of(len(src), src_mask[:, None])
    across = WatchedMask(source, lambda weights: seen.append(weights.mean(dim=1)))
    masked_forward(
        model,
        src,
        tgt_in,
        source,
        _causal_mask(len(tgt_in), tgt_in.shape[1], tgt_in.device),
        across,
    )
    return seen[layer].float().cpu()


def masked_forward(
    model: Transformer, src: Tensor, tgt_in: Tensor, encoder: Mask, causal: Mask, cross: Mask
) -> Tensor:
    """`Transformer.forward` with a mask for each kind of attention; gives hidden states [batch, tgt_len, d_model]."""
    assert not model.training, "a model in training drops what is to be seen"
    batch, src_len = src.shape
    tgt_len = tgt_in.shape[1]
    positions = [
        torch.arange(length, device=src.device).repeat_interleave(batch)
        for length in (src_len, tgt_len)
    ]
    memory = model.encoder(src.t().flatten(), positions[0], src_len, encoder)
    hidden = model.decoder(tgt_in.t().flatten(), positions[1], tgt_len, memory, causal, cross)
    return hidden.unflatten(0, (tgt_len, batch)).transpose(0, 1)


def _causal_mask(batch: int, length: int, device: torch.device) -> PaddedMask:
    return PaddedMask.of(
        batch, torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
    )
