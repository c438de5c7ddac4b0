"""Whether training as `mt` computes it learns what a plain fp32 PyTorch learns: the loss of both, side by side, for several seeds.

Usage: python scripts/check_fast_path.py CONFIG [key=value ...] [--updates 300] [--seeds 1,2,3] [--json FILE]

The reference is the same model, data and order with PyTorch's own operations throughout, in fp32: `F.dropout`, its fused attention,
`F.cross_entropy` with label smoothing over all logits, `clip_grad_norm_` and an AdamW that is not fused. The two draw different dropout
masks, so their losses differ as those of two seeds do: the table shows the mean difference beside the spread over seeds.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # before torch loads, as the command `mt` does

import argparse
import contextlib
import json
import logging
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from mt.config import Config, load_config
from mt.data.batching import Batch
from mt.data.prepare import Prepared, prepare
from mt.data.tokenizer import PAD_ID
from mt.device import choose_compute
from mt.model.layers import Dropout
from mt.model.masks import PaddedMask
from mt.model.transformer import Transformer
from mt.train import trainer as trainer_module
from mt.train.gradients import LossScale
from mt.train.loss import Loss
from mt.train.trainer import trial

WINDOW = 50  # updates that make one point of the curve


def plain_loss(model: Transformer, batch: Batch, label_smoothing: float) -> Loss:
    """The loss from all logits of the batch."""
    logits = model.project(model(batch.src, batch.src_mask, batch.tgt_in)).flatten(0, 1)
    targets = batch.tgt_out.flatten()
    smoothed = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, ignore_index=PAD_ID, reduction="sum")
    return Loss(smoothed, F.cross_entropy(logits.detach(), targets, ignore_index=PAD_ID, reduction="sum"))


def plain_step(
    model: Transformer, optimizer: torch.optim.Optimizer, loss: Tensor, scale: LossScale, clip_norm: float
) -> tuple[Tensor, Tensor]:
    """Clip, step."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return norm, ~norm.isfinite()


@contextlib.contextmanager
def plain_pytorch() -> Iterator[None]:
    """PyTorch's own operations in place of ours."""
    with (
        patch.object(Dropout, "drops", lambda self, x: False),
        patch.object(PaddedMask, "attend", PaddedMask._fused),
        patch.object(trainer_module, "loss_sums", plain_loss),
        patch.object(trainer_module, "apply_gradients", plain_step),
        patch.object(trainer_module, "packs", lambda config, compute: False),
    ):
        yield


def curve(config: Config, prepared: Prepared, updates: int, plain: bool) -> tuple[list[float], float]:
    """(mean nll of each window of updates, target tokens/s) of one training."""
    compute = choose_compute(config.device, "fp32" if plain else config.precision, config.threads)
    with plain_pytorch() if plain else contextlib.nullcontext(), trial(config, prepared, compute) as trainer:
        if plain:
            groups = [{**group, "fused": False} for group in trainer.optimizer.param_groups]
            trainer.optimizer = torch.optim.AdamW(groups, fused=False)
        losses, tokens, began = [], 0, time.perf_counter()
        with contextlib.closing(trainer.loader.updates()) as stream:  # type: ignore[type-var]
            for _ in range(updates):
                update = next(stream)
                losses.append(trainer.train_step(update).read().nll)
                tokens += update.num_tokens
        took = time.perf_counter() - began
    return [statistics.fmean(losses[at : at + WINDOW]) for at in range(0, updates, WINDOW)], tokens / took


def main() -> None:
    """Train both ways with each seed and show the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    curves: dict[str, list[list[float]]] = {"ours": [], "plain": []}
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    for seed in args.seeds.split(","):
        config = load_config(args.config, [*args.overrides, f"seed={seed}"])
        prepared = prepare(config)
        for name in curves:
            points, rate = curve(config, prepared, args.updates, plain=name == "plain")
            curves[name].append(points)
            rates[name].append(rate)
    table = Table(title=f"nll a target token, mean (and range) over seeds {args.seeds}")
    for column in ("updates", "ours", "plain fp32 PyTorch", "difference of means", "spread over seeds"):
        table.add_column(column, justify="right")
    for index in range(len(curves["plain"][0])):
        ours, plain = ([points[index] for points in curves[name]] for name in ("ours", "plain"))
        shown = (f"{statistics.fmean(x):.4f} ({min(x):.4f}-{max(x):.4f})" for x in (ours, plain))
        spread = max(max(ours) - min(ours), max(plain) - min(plain))
        first = index * WINDOW + 1
        table.add_row(f"{first}-{first + WINDOW - 1}", *shown, f"{statistics.fmean(ours) - statistics.fmean(plain):+.4f}", f"{spread:.4f}")
    Console().print(table)
    for name, values in rates.items():
        Console().print(f"{name}: {statistics.median(values):,.0f} target tokens/s (median)")
    if args.json is not None:
        args.json.write_text(json.dumps({"curves": curves, "rates": rates}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
