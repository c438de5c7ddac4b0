"""Several ranks train like one process: updates, losses and weights are equal (DDP and FSDP2)."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mt.artifacts import CheckpointManager
from mt.config import Config, ResolvedRun, load_config
from mt.data.prepare import prepare
from mt.model.transformer import build_model
from mt.runtime.device import Compute
from mt.runtime.shards import is_sharded, unsharded
from mt.runtime.world import World
from mt.train.trainer import Trainer
from tests.conftest import ROOT
from tests.runtime.ranks import on_ranks

CPU = Compute(torch.device("cpu"), torch.float32)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Several ranks add three or more micro-batches in a different order than one rank. If a gradient is
# as small as the rounding error, Adam turns that error into full-size steps. The largest difference
# we measured is 2.5e-6.
CLOSE = 1e-5


@pytest.fixture
def settings(small_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., Config]:
    """Return a function that loads the small configuration with overrides and prepares its data."""
    path = small_yaml(tmp_path)

    def load(*overrides: str) -> Config:
        config = load_config(path, list(overrides))
        prepare(config)
        return config

    return load


def trained(config: Config, run_dir: Path, world: World, steps: int = 4) -> dict[str, Any]:
    """Train a few updates; return their statistics and pairs, and the final weights."""
    run_dir.mkdir(exist_ok=True)
    manager = CheckpointManager(run_dir, 3, 1, "bleu", world)
    resolved = ResolvedRun(run_dir, config)
    trainer = Trainer(resolved, prepare(config, world), CPU, manager, world)
    updates = trainer.loader.updates()
    stats, seen = [], []
    for _ in range(steps):
        update = next(updates)
        seen.append([indices.tolist() for indices in update.indices])
        stats.append(trainer.train_step(update).read())
    updates.close()  # type: ignore[attr-defined]
    weights = {name: unsharded(weight).clone() for name, weight in trainer.weights().items()}
    average = (
        {name: unsharded(weight).clone() for name, weight in trainer.average.weights.items()}
        if trainer.average
        else {}
    )
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


def test_two_ranks_equal_one_with_two_micro_batches_and_dropout(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings("model.dropout=0.1", "train.grad_accum_steps=2")
    alone = trained(config, tmp_path / "alone", World())
    first, second = on_ranks(2, lambda world: trained(config, tmp_path / "ddp", world))
    assert_same(first, second, tolerance=0)
    assert_same(alone, first, tolerance=CLOSE)
    other_draws = trained(
        settings("model.dropout=0.1", "train.grad_accum_steps=2", "seed=2"),
        tmp_path / "other",
        World(),
    )
    with pytest.raises(AssertionError):
        assert_same(alone, other_draws, tolerance=CLOSE)


def test_a_sharded_model_has_the_weights_of_its_seed_and_is_never_moved_as_a_whole(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings("train.parallel=fsdp")

    def work(world: World) -> tuple[dict[str, torch.Tensor], list[str]]:
        moved, to = [], torch.nn.Module.to
        with patch.object(
            torch.nn.Module,
            "to",
            lambda module, *args: moved.append(type(module).__name__) or to(module, *args),
        ):
            manager = CheckpointManager(tmp_path, 3, 1, "bleu", world)
            trainer = Trainer(
                ResolvedRun(tmp_path, config), prepare(config, world), CPU, manager, world
            )
        assert all(is_sharded(weight) for weight in trainer.weights().values())
        return {name: unsharded(weight) for name, weight in trainer.weights().items()}, moved

    tokenizer = prepare(config).tokenizer
    sizes = tokenizer.src_vocab_size, tokenizer.tgt_vocab_size
    expected = dict(build_model(config.model, *sizes, config.seed).named_parameters())
    for weights, moved in on_ranks(2, work):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
        assert moved == []


# This program prints how much memory it takes to shard a model, measured on one of four ranks. The
# other three are simulated.
SHARDING = """
import sys
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from mt.config import ModelConfig
from mt.runtime.world import World
from mt.model.transformer import build_model
from mt.train.objective import TrainingLoss

device = torch.device(sys.argv[1])
torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
model = build_model(ModelConfig(d_model=256, d_ff=1024, num_heads=4), 2000, 2000, seed=1)
whole = sum(p.nbytes for p in model.parameters())
layers = [*model.encoder.layers, *model.decoder.layers]
World(0, 4, timeout=10.0).wrap(TrainingLoss(model, 0.1), "fsdp", layers, device)
local = sum(p.to_local().nbytes for p in model.parameters())
places = {p.to_local().device.type for p in model.parameters()}
peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
print(*places, local / whole, peak / whole)
"""


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_GPU])]
)
def test_sharding_a_model_takes_at_most_the_memory_of_a_shard_and_a_layer(device: str) -> None:
    command = [sys.executable, "-c", SHARDING, device]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    place, local, peak = result.stdout.split()
    assert place == device
    assert float(local) == pytest.approx(0.25, abs=0.01)
    assert (0.25 if device == "cuda" else 0) <= float(peak) < 0.5


@pytest.mark.parametrize(("size", "micro_batches"), [(2, 2), (2, 3), (2, 4), (3, 4)])
def test_fsdp_equals_ddp_and_one_rank_even_with_uneven_shares(
    size: int, micro_batches: int, settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings(f"train.grad_accum_steps={micro_batches}")
    sharded = settings(f"train.grad_accum_steps={micro_batches}", "train.parallel=fsdp")
    alone = trained(config, tmp_path / "alone", World())
    ddp = on_ranks(size, lambda world: trained(config, tmp_path / "ddp", world))[0]
    fsdp = on_ranks(size, lambda world: trained(sharded, tmp_path / "fsdp", world))[0]
    assert_same(ddp, fsdp, tolerance=0 if micro_batches <= size == 2 else CLOSE)
    assert_same(alone, ddp, tolerance=CLOSE)
