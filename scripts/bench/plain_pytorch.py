"""Replace mt's optimized operations with PyTorch's own, one kind at a time.

scripts/bench/ablate.py measures how much faster each optimization is than PyTorch's own operation,
and scripts/check/fast_path.py checks that training learns the same with either.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

import mt.runtime.device as device_module
from mt.data.batch import Batch
from mt.data.tokenizer import PAD_ID
from mt.model.attention import PaddedAttention
from mt.model.layers import Dropout
from mt.model.transformer import Transformer
from mt.train import objective as loss_module
from mt.train import updates
from mt.train.cross_entropy import Loss
from mt.train.gradients import LossScale


def plain_loss(model: Transformer, batch: Batch, label_smoothing: float) -> Loss:
    """Compute the loss from all logits of the batch at once."""
    logits = model.project(model(batch.src, batch.src_mask, batch.tgt_in)).flatten(0, 1)
    targets = batch.tgt_out.flatten()
    smoothed = F.cross_entropy(
        logits, targets, label_smoothing=label_smoothing, ignore_index=PAD_ID, reduction="sum"
    )
    return Loss(
        smoothed, F.cross_entropy(logits.detach(), targets, ignore_index=PAD_ID, reduction="sum")
    )


def plain_step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    scale: LossScale,
    clip_norm: float,
    bad_updates: Tensor,
    max_bad: int,
) -> tuple[Tensor, Tensor]:
    """Clip the gradients and step. Returns (gradient norm, number of bad updates so far)."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return norm, bad_updates + ~norm.isfinite()


def plain_optimizer(model: Transformer, config: Any, device: torch.device) -> torch.optim.AdamW:
    """Build an AdamW that is not fused."""
    groups = trainer_build_optimizer(model, config, device).param_groups
    return torch.optim.AdamW([{**group, "fused": False} for group in groups], fused=False)


trainer_build_optimizer = updates.build_optimizer
# Maps each kind of operation to what is replaced: (owner, attribute, PyTorch's own operation).
PLAIN: dict[str, list[tuple[Any, str, Callable[..., Any]]]] = {
    # F.dropout instead of masks from random bytes.
    "dropout": [(Dropout, "drops", lambda self, x: False)],
    # The fused kernel instead of two batched matrix products.
    "attention": [(PaddedAttention, "attend", PaddedAttention._fused)],
    # All logits at once instead of in chunks.
    "loss": [(loss_module, "loss_sums", plain_loss)],
    "optimizer": [
        (updates, "apply_gradients", plain_step),
        (updates, "build_optimizer", plain_optimizer),
    ],
    # Let glibc return freed memory to the system. This has an effect only in a new process.
    "allocator": [(device_module, "configure_malloc", lambda: None)],
}


@contextlib.contextmanager
def plain_pytorch(kinds: Iterable[str]) -> Iterator[None]:
    """During the block, use padded batches and PyTorch's own operations of the given kinds."""
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            for owner, name, plain in PLAIN[kind]:
                stack.enter_context(patch.object(owner, name, plain))
        stack.enter_context(patch.object(updates, "packs", lambda config, compute: False))
        yield
