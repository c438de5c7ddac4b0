"""Two ranks train as one process does: the same updates, losses and weights, whichever way the model is shared out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.checkpoint import CheckpointManager
from mt.config import Config, load_config
from mt.data.prepare import prepare
from mt.device import Compute
from mt.distributed import World, unsharded
from mt.train.trainer import Trainer
from tests.distributed.ranks import on_ranks

CPU = Compute(torch.device("cpu"), torch.float32)
# Sums of three micro-batches or more are added up in another order on ranks, and Adam makes steps
# of rounding noise where a gradient is hardly more than that: measured up to 2.5e-6.
CLOSE = 1e-5


@pytest.fixture
def settings(small_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., Config]:
    """The small configuration with overrides, its data prepared."""
    path = small_yaml(tmp_path)

    def load(*overrides: str) -> Config:
        config = load_config(path, list(overrides))
        prepare(config)
        return config

    return load


def trained(config: Config, run_dir: Path, world: World, steps: int = 4) -> dict[str, Any]:
    """Losses, norms, order and weights of the first updates."""
    run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, prepare(config, world), run_dir, CPU, CheckpointManager(run_dir, 3, 1, "bleu", world), world)
    updates = trainer.loader.updates()
    stats, seen = [], []
    for _ in range(steps):
        update = next(updates)
        seen.append([indices.tolist() for indices in update.indices])
        stats.append(trainer.train_step(update).read())
    updates.close()  # type: ignore[attr-defined]
    weights = {name: unsharded(weight).clone() for name, weight in trainer.weights().items()}
    average = {name: unsharded(weight).clone() for name, weight in trainer.average.weights.items()} if trainer.average else {}
    return {"stats": stats, "seen": seen, "weights": weights, "average": average}


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert one["seen"] == other["seen"]
    for a, b in zip(one["stats"], other["stats"], strict=True):
        assert (a.num_tokens, a.lr) == (b.num_tokens, b.lr)
        assert (a.loss, a.nll, a.grad_norm) == pytest.approx((b.loss, b.nll, b.grad_norm), rel=1e-5)
    for kind in ("weights", "average"):
        assert one[kind].keys() == other[kind].keys()
        for name, weight in one[kind].items():
            assert torch.allclose(weight, other[kind][name], rtol=0, atol=tolerance), name


def test_two_ranks_equal_one_with_two_micro_batches_dropout_on(settings: Callable[..., Config], tmp_path: Path) -> None:
    config = settings("model.dropout=0.1", "train.grad_accum_steps=2")
    alone = trained(config, tmp_path / "alone", World())
    first, second = on_ranks(2, lambda world: trained(config, tmp_path / "ddp", world))
    assert_same(first, second, tolerance=0)
    assert_same(alone, first, tolerance=CLOSE)
    other_draws = trained(settings("model.dropout=0.1", "train.grad_accum_steps=2", "seed=2"), tmp_path / "other", World())
    with pytest.raises(AssertionError):
        assert_same(alone, other_draws, tolerance=CLOSE)


@pytest.mark.parametrize(("size", "micro_batches"), [(2, 2), (2, 3), (2, 4), (3, 4)])
def test_fsdp_equals_ddp_and_one_rank_uneven_shares_included(
    size: int, micro_batches: int, settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings(f"train.grad_accum_steps={micro_batches}")
    sharded = settings(f"train.grad_accum_steps={micro_batches}", "train.parallel=fsdp")
    alone = trained(config, tmp_path / "alone", World())
    ddp = on_ranks(size, lambda world: trained(config, tmp_path / "ddp", world))[0]
    fsdp = on_ranks(size, lambda world: trained(sharded, tmp_path / "fsdp", world))[0]
    assert_same(ddp, fsdp, tolerance=0 if micro_batches <= size == 2 else CLOSE)
    assert_same(alone, ddp, tolerance=CLOSE)

