"""The losses of a small training run equal those in golden_losses.json, on every machine."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt.config import load_config
from mt.data.prepare import prepare
from mt.runtime.device import Compute
from mt.train.trainer import trial

# After a change that is meant to change the losses, run this test with MT_WRITE_GOLDEN=1, which
# writes the file again.
GOLDEN = Path(__file__).parent / "golden_losses.json"
SETTINGS = {
    "dropout": ["train.ema_decay=0.9", "model.activation_dropout=0.1"],
    "pre-norm": ["model.norm=pre", "model.activation=gelu", "model.tie_embeddings=decoder"],
}
TOLERANCE = 1e-3  # because different processors add numbers in different orders


def losses(path: Path, *overrides: str) -> list[float]:
    """Train 50 updates; return the label-smoothed loss of each."""
    config = load_config(path, overrides)
    compute = Compute(torch.device("cpu"), torch.float32)
    with trial(config, prepare(config), compute) as trainer:
        updates = trainer.loader.updates()
        values = [trainer.train_step(next(updates)).read().loss for _ in range(50)]
        updates.close()  # type: ignore[attr-defined]
    return values


@pytest.mark.parametrize("name", SETTINGS)
def test_the_losses_equal_the_golden_file(
    name: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    values = losses(small_yaml(tmp_path), *SETTINGS[name])
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: values}, indent=1) + "\n")
        return
    assert values == pytest.approx(golden[name], abs=TOLERANCE)
    assert values[-1] < values[0] - 0.5


def test_two_runs_on_one_machine_have_equal_losses_bit_for_bit(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert losses(config) == losses(config)
    assert losses(config) != losses(config, "seed=2")
