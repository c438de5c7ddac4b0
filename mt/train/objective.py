"""The training objective: the loss of a model on one micro-batch.

Losses are sums over the target tokens. The train step divides them, just once, by the number of
target tokens in the whole update.
"""

from torch import nn

from mt.data.batch import AnyBatch, Batch
from mt.model.transformer import Transformer
from mt.train.cross_entropy import Loss, linear_cross_entropy


class TrainingLoss(nn.Module):
    """A model together with its loss.

    DDP and FSDP2 wrap this module instead of the model, so they see every use of the parameters,
    including the output projection, which is part of the loss.
    """

    def __init__(self, model: Transformer, label_smoothing: float) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def forward(self, batch: AnyBatch) -> Loss:
        """Return the loss sums of a batch."""
        return loss_sums(self.model, batch, self.label_smoothing)


def loss_sums(model: Transformer, batch: AnyBatch, label_smoothing: float) -> Loss:
    """Return the loss of one micro-batch, padded or packed, summed over its target tokens."""
    if isinstance(batch, Batch):
        hidden = model(batch.src, batch.src_mask, batch.tgt_in).flatten(0, 1)
    else:
        hidden = model.packed(
            batch.src,
            batch.src_offsets,
            batch.max_src_len,
            batch.tgt_in,
            batch.tgt_offsets,
            batch.max_tgt_len,
        )
    return linear_cross_entropy(
        hidden, model.output_weight, batch.tgt_out.flatten(), label_smoothing, model.output_bias
    )
