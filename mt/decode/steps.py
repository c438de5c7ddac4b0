"""Models as a search drives them: encode once, then a step per token; here PyTorch's, operation by
operation.
"""

import torch
from torch import Tensor, nn

from mt.model.attention import PaddedAttention
from mt.model.layers import Activation
from mt.model.state import CachedCrossAttention, CachedSelfAttention, DecoderState, LayerCache
from mt.model.transformer import Transformer, for_translating


class EagerModel:
    """The weights of a `Transformer` as they are now, packed in one precision; see
    `for_translating`.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype = torch.float32) -> None:
        self.model = for_translating(model, dtype)
        # A step is counted in microseconds: its parts are found at once, and called without hooks.
        for part in self.model.modules():
            for name, inner in part.named_children():
                is_only_called = isinstance(inner, nn.LayerNorm | Activation)
                vars(part)[name] = inner.forward if is_only_called else inner

    def initial_state(self, src: Tensor, src_mask: Tensor) -> DecoderState:
        """Encode `src` [sentences, src_len]; `src_mask` of the same shape is True where a token
        stands.
        """
        attention = PaddedAttention.over(src, None if src_mask.all() else src_mask)
        memory = self.model.encode_flat(src, attention)
        layers = [
            LayerCache.of(layer.encoder_attn.heads(memory, "kv"), len(src))  # type: ignore[operator, union-attr]
            for layer in self.model.decoder.layers
        ]
        bias = None if attention.bias is None else attention.bias[:, None]
        path = torch.zeros(len(src), 1, 0, dtype=torch.bool, device=src.device)
        return DecoderState(layers, bias, path)

    def step(self, tokens: Tensor, state: DecoderState) -> Tensor:
        """Log-probabilities [sentences, beams, tgt_vocab_size] of what follows one more token
        [sentences, beams] of each hypothesis.

        `state` moves on. A search may begin with one beam: all hypotheses of a sentence begin
        alike.
        """
        position = state.length
        own = CachedSelfAttention(state, *state.advance(tokens.shape[1]))
        cross = CachedCrossAttention(state)
        x = self.model.decoder(tokens.flatten(), position, position + 1, None, own, cross)
        return self.model.project(x).float().log_softmax(dim=-1).unflatten(0, tokens.shape)
