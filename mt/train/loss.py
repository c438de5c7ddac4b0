"""Cross-entropy with label smoothing, as sums; only the train step divides, once, by the target tokens of the whole update."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from mt.data.batching import Batch
from mt.data.tokenizer import PAD_ID
from mt.model.transformer import Transformer


class Loss(NamedTuple):
    """Sums over the target tokens of a batch."""

    smoothed: Tensor  # what training minimizes
    nll: Tensor       # negative log-likelihood in nats, without smoothing, detached


def loss_sums(model: Transformer, batch: Batch, label_smoothing: float) -> Loss:
    """Loss of one micro-batch: (1 - e) nll + e x the mean over the vocabulary (Szegedy et al. 2016), padding left out."""
    hidden = model(batch.src, batch.src_mask, batch.tgt_in)
    logits = model.project(hidden).flatten(0, 1).float()  # [batch x tgt_len, vocab]
    targets = batch.tgt_out.flatten()
    if label_smoothing == 0:
        nll = F.cross_entropy(logits, targets, ignore_index=PAD_ID, reduction="sum")
        return Loss(nll, nll.detach())
    log_probs = logits.log_softmax(dim=-1)
    real = targets != PAD_ID
    nll = F.nll_loss(log_probs, targets, ignore_index=PAD_ID, reduction="sum")
    uniform = -(log_probs.mean(dim=-1) * real).sum()
    return Loss((1 - label_smoothing) * nll + label_smoothing * uniform, nll.detach())
