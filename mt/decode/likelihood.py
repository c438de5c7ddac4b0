"""Log-probabilities of given translations, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mt.data.batch import IdPair, collate, to_device
from mt.model.transformer import Transformer
from mt.runtime.device import Compute


@dataclass(frozen=True)
class TokenScores:
    """The natural log-probability of each target token, including the end-of-sentence token."""

    ids: list[int]  # of the target, without the end-of-sentence token
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """The log-probability of the whole target."""
        return sum(self.log_probs)


@torch.inference_mode()
def token_log_probs(
    model: Transformer, pairs: Sequence[IdPair], compute: Compute
) -> list[list[float]]:
    """Return the log-probability of each target token, including the end-of-sentence token.

    All pairs are computed in one batch.
    """
    batch = to_device(collate(pairs), compute.device)
    with compute.autocast():
        logits = model.project(model(batch.src, batch.src_mask, batch.tgt_in))
    log_probs = logits.float().log_softmax(dim=-1).gather(2, batch.tgt_out[:, :, None])[:, :, 0]
    return [row[: len(tgt) + 1] for row, (_, tgt) in zip(log_probs.tolist(), pairs, strict=True)]
