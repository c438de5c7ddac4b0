"""Step models, which the search uses: they encode the source once, then decode step by step."""

import torch
from torch import Tensor, nn

from mt.model.attention import PaddedAttention
from mt.model.layers import Activation
from mt.model.state import CachedCrossAttention, CachedSelfAttention, DecoderState, LayerCache
from mt.model.transformer import Transformer, for_translating


class EagerModel:
    """A step model that runs a copy of a `Transformer` with PyTorch's eager operations.

    The copy has the current weights, converted to `dtype`; see `for_translating`.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype = torch.float32) -> None:
        self.model = for_translating(model, dtype)
        # Looking up submodules and calling module hooks would take a large part of each step. So
        # submodules become plain attributes, and simple ones are replaced by their `forward`.
        for part in self.model.modules():
            for name, inner in part.named_children():
                is_only_called = isinstance(inner, nn.LayerNorm | Activation)
                vars(part)[name] = inner.forward if is_only_called else inner

    def initial_state(self, src: Tensor, src_mask: Tensor) -> DecoderState:
        """Encode `src` [sentences, src_len] and return a state without hypotheses.

        `src_mask` has the same shape and is False for padding.
        """
        attention = PaddedAttention.over(src, None if src_mask.all() else src_mask)
        memory = self.model.encode_flat(src, attention)
        layers = [
            LayerCache.of(layer.encoder_attn.heads(memory, "kv"), len(src))  # type: ignore
            for layer in self.model.decoder.layers
        ]
        bias = None if attention.bias is None else attention.bias[:, None]
        path = torch.zeros(len(src), 1, 0, dtype=torch.bool, device=src.device)
        return DecoderState(layers, bias, path)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Append one token to each hypothesis, and score the tokens that may follow it.

        `tokens` is [sentences, beams]. Returns log-probabilities [sentences, beams,
        tgt_vocab_size] and updates `state`. The first step may have a single beam.
        """
        position = state.length
        self_attention = CachedSelfAttention(state, *state.advance(tokens.shape[1]))
        cross_attention = CachedCrossAttention(state)
        x = self.model.decoder(
            tokens.flatten(), position, position + 1, None, self_attention, cross_attention
        )
        return self.model.project(x).float().log_softmax(dim=-1).unflatten(0, tokens.shape)
