"""The decoder's state between steps: what a search may do with it, and nothing else.

A search holds `beam_size` rows (hypotheses) for each sentence, row = sentence x beam_size + beam. Self-attention caches belong to rows;
cross-attention keys and values and the source mask belong to sentences and are never copied per beam.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mt.model.attention import KVCache


@dataclass
class DecoderState:
    """Caches of every decoder layer, for `len(positions)` rows over `len(src_mask)` sentences."""

    self_attn: list[KVCache]   # per layer, [rows, num_heads, step, head_dim]
    cross_attn: list[KVCache]  # per layer, [sentences, num_heads, src_len, head_dim]
    src_mask: Tensor           # [sentences, src_len] True where a source token stands
    positions: Tensor          # [rows] position of the next token of each row

    @property
    def length(self) -> int:
        """Tokens of each row so far."""
        return self.self_attn[0].keys.shape[2]

    @property
    def beam_size(self) -> int:
        """Rows of each sentence."""
        return len(self.positions) // len(self.src_mask)

    def reorder(self, hyp_index: Tensor) -> None:
        """Let row i go on from row `hyp_index[i]` [rows]; both belong to the same sentence."""
        for cache in self.self_attn:
            cache.select(hyp_index)
        self.positions = self.positions[hyp_index]

    def keep(self, sentence_index: Tensor) -> None:
        """Drop all sentences but those at `sentence_index` [kept], with their rows."""
        beams = torch.arange(self.beam_size, device=sentence_index.device)
        rows = (sentence_index[:, None] * self.beam_size + beams).flatten()
        self.reorder(rows)
        for cache in self.cross_attn:
            cache.select(sentence_index)
        self.src_mask = self.src_mask[sentence_index]
