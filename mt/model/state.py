"""The decoder's state between decoding steps.

A search keeps several hypotheses (beams) per sentence. Cross-attention keys and values and the
source mask are stored once per sentence, not once per beam.

The hypotheses of a sentence form a trie, because they share their beginnings. Each node of the trie
is one token, whose self-attention keys and values are stored in one cell of the sentence's cache. A
cell is written once. The table `path` says which cells belong to which hypothesis. Reordering the
hypotheses only changes this table, and cells that belong to no hypothesis are used again. All
hypotheses of a sentence attend to all cells of the sentence in one product, with a mask that hides
the cells of other hypotheses. So nothing is copied, and the cost of a step grows with the number of
nodes, not with beams x length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mt.model.attention import attention_bias
from mt.model.layers import Dropout

FIRST_CAPACITY = 64  # initial number of cells per sentence; it is doubled when all are in use


@dataclass
class LayerCache:
    """Keys and values of one decoder layer."""

    keys: Tensor  # [sentences, num_heads, capacity, head_dim]; cells never written are zero
    values: Tensor  # the same shape
    src_keys: Tensor  # [sentences, num_heads, src_len, head_dim]
    src_values: Tensor  # the same shape

    @classmethod
    def of(cls, heads: tuple[Tensor, ...], sentences: int) -> "LayerCache":
        """Return a cache with the keys and values of a source, and empty cells for hypotheses.

        `heads` are the keys and values, both [src_len x sentences, num_heads, head_dim].
        """
        src_keys, src_values = (
            x.unflatten(0, (-1, sentences)).permute(1, 2, 0, 3).contiguous() for x in heads
        )
        _, num_heads, _, head_dim = src_keys.shape
        empty = src_keys.new_zeros(2, sentences, num_heads, FIRST_CAPACITY, head_dim)
        return cls(empty[0], empty[1], src_keys, src_values)


@dataclass
class DecoderState:
    """The caches of all decoder layers, and which cells belong to which hypothesis."""

    layers: list[LayerCache]
    # [sentences, 1, 1, src_len]: 0 for source tokens, -inf for padding. None means no padding.
    src_bias: Tensor | None
    path: Tensor  # [sentences, beams, cells] True if the hypothesis contains the token of the cell
    length: int = 0  # tokens per hypothesis so far

    def advance(self, num_beams: int) -> tuple[Tensor, Tensor | None]:
        """Add a cell for the next token to each hypothesis.

        In the first call, `num_beams` may be any number. Returns

        - the places of the new cells [sentences x num_beams x num_heads], which are indices into
          the caches with the first three dimensions flattened;
        - the self-attention bias [sentences, 1, num_beams, cells], which is 0 if the cell belongs
          to the hypothesis, else -inf; or None if every cell belongs to every hypothesis.
        """
        if not self.length:
            self.path = self.path.expand(-1, num_beams, -1)
        cells = self._free_cells(num_beams)
        self.path = self.path.scatter(2, cells[:, :, None], True)
        self.length += 1
        has_one_hypothesis = self.path.shape[2] == self.length
        bias = None if has_one_hypothesis else attention_bias(self.path)[:, None]
        return self._places(cells), bias

    def _free_cells(self, count: int) -> Tensor:
        """Return `count` unused cells per sentence [sentences, count]. Adds cells if needed."""
        used = self.path.any(dim=1)  # [sentences, cells]
        num_free = int((~used).sum(dim=1).min()) if used.numel() else 0
        if num_free < count:
            self.path, used = (F.pad(x, (0, count - num_free)) for x in (self.path, used))
            for layer in self.layers:
                while self.path.shape[2] > layer.keys.shape[2]:
                    layer.keys, layer.values = _doubled(layer.keys), _doubled(layer.values)
        return used.int().sort(dim=1, stable=True).indices[:, :count]

    def _places(self, cells: Tensor) -> Tensor:
        """Return the places (see `advance`) of `cells` [sentences, beams] for all heads."""
        sentences, num_heads, capacity, _ = self.layers[0].keys.shape
        heads = torch.arange(sentences * num_heads, device=cells.device)
        first = heads.view(sentences, 1, num_heads) * capacity  # cell 0 of each head
        return (first + cells[:, :, None]).flatten()

    def reorder(self, hyp_index: Tensor) -> None:
        """Replace hypothesis i of each sentence by hypothesis `hyp_index[:, i]` of that sentence.

        `hyp_index` is [sentences, beams].
        """
        self.path = self.path.gather(1, hyp_index[:, :, None].expand(-1, -1, self.path.shape[2]))

    def keep(self, sentence_index: Tensor) -> None:
        """Keep only the sentences at `sentence_index` [kept], in that order.

        Only sentences that move to another place are copied.
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
    """Self-attention from each hypothesis's newest token to all of its tokens.

    Successive calls of `attend` are for successive layers. Hypotheses are [sentences x beams].
    """

    def __init__(self, state: DecoderState, places: Tensor, bias: Tensor | None) -> None:
        """`places` and `bias` come from `DecoderState.advance`."""
        self.state, self.places, self.bias = state, places, bias
        self.layers = iter(state.layers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Write the new keys and values into the next layer's cache, and attend to it."""
        cache, (sentences, beams, num_cells) = next(self.layers), self.state.path.shape
        head_dim = q.shape[-1]
        for cached, new in ((cache.keys, k), (cache.values, v)):
            cached.view(-1, head_dim).index_copy_(0, self.places, new.reshape(-1, head_dim))
        keys, values = cache.keys[:, :, :num_cells], cache.values[:, :, :num_cells]
        return attend_to_cache(q, keys, values, self.bias, scale, (sentences, beams))


class CachedCrossAttention:
    """Cross-attention from each hypothesis's newest token to the source sentence.

    Successive calls of `attend` are for successive layers. Hypotheses are [sentences x beams].
    """

    def __init__(self, state: DecoderState) -> None:
        self.state = state
        self.layers = iter(state.layers)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Attend to the source keys and values of the next layer."""
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
    """Return softmax(Q K^T + bias) V [sentences x beams, d_model].

    `q` is [sentences x beams, num_heads, head_dim], `keys` and `values` are [sentences, num_heads,
    length, head_dim], `bias` is [sentences, 1, beams or 1, length], `shape` is (sentences, beams).
    """
    assert scale == 1.0, "`for_translating` has multiplied the query weights by the scale"
    q = q.view(*shape, *q.shape[1:]).transpose(1, 2)
    if q.device.type != "cpu":
        mask = None if bias is None else bias.to(q.dtype)
        context = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale)
    else:  # on a CPU, two batched products are as fast as the fused kernel, and accept any strides
        heads = q.shape[:2]
        scores = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(0, heads)
        if bias is not None:
            scores = scores.add_(bias)
        context = torch.bmm(scores.softmax(dim=-1).flatten(0, 1), values.flatten(0, 1))
        context = context.unflatten(0, heads)
    return context.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])
