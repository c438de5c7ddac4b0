"""Log-probabilities of given translations: how likely a model finds each token of a target, given
its source.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mt.data.batch import IdPair, collate, to_device
from mt.model.transformer import Transformer
from mt.runtime.device import Compute


@dataclass(frozen=True)
class TokenScores:
    """A target and the log-probability (natural) of each of its tokens, end of sentence included."""

    ids: list[int]  # without end of sentence
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Their sum."""
        return sum(self.log_probs)


@torch.inference_mode()
def token_log_probs(
    model: Transformer, pairs: Sequence[IdPair], compute: Compute
) -> list[list[float]]:
    """The log-probability of each token of each target, end of sentence included, in one batch."""
    batch = to_device(collate(pairs), compute.device)
    with compute.autocast():
        logits = model.project(model(batch.src, batch.src_mask, batch.tgt_in))
    log_probs = logits.float().log_softmax(dim=-1).gather(2, batch.tgt_out[:, :, None])[:, :, 0]
    return [row[: len(tgt) + 1] for row, (_, tgt) in zip(log_probs.tolist(), pairs, strict=True)]
