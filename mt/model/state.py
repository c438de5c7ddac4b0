"""The decoder's state between steps: what a search may do with it, and nothing else.

A search holds some hypotheses (beams) of each sentence. Cross-attention keys and values and the
source mask belong to sentences and are never copied per beam. The hypotheses of a sentence are a
trie: they share their beginnings. Self-attention keys and values are those of its nodes, each in a
cell of its sentence, written once; all that a reordering changes is the table of which hypothesis
has which cells, and a cell that none has any more is taken anew. A sentence's hypotheses attend to
all its cells together, as the positions of one query, behind a mask that leaves each its own. So a
step costs about as much as the trie has nodes, not beams x length, and nothing is copied.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mt.model.attention import attention_bias
from mt.model.layers import Dropout

FIRST_CAPACITY = 64  # cells of a sentence; doubled when they are full


@dataclass
class LayerCache:
    """Keys and values of one decoder layer."""

    # [sentences, num_heads, capacity, head_dim], as are `values`; zeros where nothing was written
    keys: Tensor
    values: Tensor
    src_keys: Tensor  # [sentences, num_heads, src_len, head_dim], as are `src_values`
    src_values: Tensor

    @classmethod
    def of(cls, heads: tuple[Tensor, ...], sentences: int) -> "LayerCache":
        """From keys and values of a memory, time first [src_len x sentences, num_heads, head_dim];
        with room for those of hypotheses.
        """
        src_keys, src_values = (
            x.unflatten(0, (-1, sentences)).permute(1, 2, 0, 3).contiguous() for x in heads
        )
        _, num_heads, _, head_dim = src_keys.shape
        empty = src_keys.new_zeros(2, sentences, num_heads, FIRST_CAPACITY, head_dim)
        return cls(empty[0], empty[1], src_keys, src_values)


@dataclass
class DecoderState:
    """Caches of every decoder layer, and which cells of them belong to which hypothesis."""

    layers: list[LayerCache]
    src_bias: (
        Tensor | None
    )  # [sentences, 1, 1, src_len] 0 where a source token stands, else -inf; None: everywhere
    path: Tensor  # [sentences, beams, cells] True where a cell holds a token of the hypothesis
    length: int = 0  # tokens of each hypothesis so far

    def advance(self, num_beams: int) -> tuple[Tensor, Tensor | None]:
        """Give each of `num_beams` hypotheses a free cell for one more token; the first time there
        may be any number of them.

        Returns where these cells are in the caches' first three dimensions taken as one, [sentences
        x num_beams x num_heads], and the mask of self-attention [sentences, 1, num_beams, cells]: 0
        where a cell belongs to the hypothesis, else -inf; None where all do.
        """
        if not self.length:
            self.path = self.path.expand(-1, num_beams, -1)
        taken = self.path.any(dim=1)  # [sentences, cells]
        num_free = int((~taken).sum(dim=1).min()) if taken.numel() else 0
        if num_free < num_beams:
            more = num_beams - num_free
            self.path, taken = (F.pad(x, (0, more)) for x in (self.path, taken))
            for layer in self.layers:
                while self.path.shape[2] > layer.keys.shape[2]:
                    layer.keys, layer.values = _doubled(layer.keys), _doubled(layer.values)
        cells = taken.int().sort(dim=1, stable=True).indices[:, :num_beams]
        self.path = self.path.scatter(2, cells[:, :, None], True)
        self.length += 1
        sentences, num_heads, capacity, _ = self.layers[0].keys.shape
        heads = torch.arange(sentences * num_heads, device=cells.device).view(
            sentences, 1, num_heads
        )
        places = (heads * capacity + cells[:, :, None]).flatten()
        if self.path.shape[2] == self.length:
            return places, None  # there was never more than one hypothesis
        return places, attention_bias(self.path)[:, None]

    def reorder(self, hyp_index: Tensor) -> None:
        """Let hypothesis i of each sentence go on from that sentence's hypothesis `hyp_index[:, i]`
        [sentences, beams].
        """
        self.path = self.path.gather(1, hyp_index[:, :, None].expand(-1, -1, self.path.shape[2]))

    def keep(self, sentence_index: Tensor) -> None:
        """Drop all sentences but those at `sentence_index` [kept], in that order; only those that
        change place are copied.
        """
        to = (
            sentence_index != torch.arange(len(sentence_index), device=sentence_index.device)
        ).nonzero()[:, 0]
        origin = sentence_index[to]

        def kept(cache: Tensor, used: int) -> Tensor:
            cache[to, :, :used] = cache[origin, :, :used]
            return cache[: len(sentence_index)]

        for layer in self.layers:
            layer.keys, layer.values = (
                kept(cache, self.path.shape[2]) for cache in (layer.keys, layer.values)
            )
            layer.src_keys, layer.src_values = (
                kept(cache, cache.shape[2]) for cache in (layer.src_keys, layer.src_values)
            )
        self.path = self.path[sentence_index]
        if self.src_bias is not None:
            self.src_bias = self.src_bias[sentence_index]


def _doubled(cache: Tensor) -> Tensor:
    return torch.cat([cache, torch.zeros_like(cache)], dim=2)


class CachedSelfAttention:
    """Of one more token of each hypothesis [sentences x beams], over all of its tokens so far;
    layer by layer.
    """

    def __init__(self, state: DecoderState, places: Tensor, bias: Tensor | None) -> None:
        """`places` and `bias` are those of `DecoderState.advance`."""
        self.state, self.places, self.bias = state, places, bias
        self.layers = iter(state.layers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Put the new keys and values into the cache of the next layer, and attend to it."""
        cache, (sentences, beams, num_cells) = next(self.layers), self.state.path.shape
        head_dim = q.shape[-1]
        for cached, new in ((cache.keys, k), (cache.values, v)):
            cached.view(-1, head_dim).index_copy_(0, self.places, new.reshape(-1, head_dim))
        keys, values = cache.keys[:, :, :num_cells], cache.values[:, :, :num_cells]
        return attend_to_cache(q, keys, values, self.bias, scale, (sentences, beams))


class CachedCrossAttention:
    """Of one more token of each hypothesis [sentences x beams] to the source of its sentence; layer
    by layer.
    """

    def __init__(self, state: DecoderState) -> None:
        self.state = state
        self.layers = iter(state.layers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Attend to the source that the next layer keeps."""
        cache, (sentences, beams, _) = next(self.layers), self.state.path.shape
        return attend_to_cache(
            q, cache.src_keys, cache.src_values, self.state.src_bias, scale, (sentences, beams)
        )


def attend_to_cache(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    scale: float,
    shape: tuple[int, int],
) -> Tensor:
    """softmax(Q K^T x scale + bias) V of q [sentences x beams, num_heads, head_dim]; gives
    [sentences x beams, d_model].

    `keys` and `values` are [sentences, num_heads, length, head_dim], `bias` [sentences, 1, beams or
    1, length]; `shape` is (sentences, beams).
    """
    assert scale == 1.0, "it is in the weights of the queries: see `for_translating`"
    q = q.view(*shape, *q.shape[1:]).transpose(1, 2)
    if q.device.type != "cpu":
        mask = None if bias is None else bias.to(q.dtype)
        context = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    else:  # here two batched products are as fast as the fused kernel, and take any strides
        heads = q.shape[:2]
        scores = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(0, heads)
        if bias is not None:
            scores = scores.add_(bias)
        context = torch.bmm(scores.softmax(dim=-1).flatten(0, 1), values.flatten(0, 1))
        context = context.unflatten(0, heads)
    return context.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
