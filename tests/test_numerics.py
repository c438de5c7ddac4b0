"""Numbers do not drift: 50 losses of a small training, written down once, come out again on every
machine.
"""

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

GOLDEN = (
    Path(__file__).parent / "golden_losses.json"
)  # MT_WRITE_GOLDEN=1 writes it anew, after a change that is meant to change numbers
SETTINGS = {
    "dropout": ["train.ema_decay=0.9", "model.activation_dropout=0.1"],
    "pre-norm": ["model.norm=pre", "model.activation=gelu", "model.tie_embeddings=decoder"],
}
TOLERANCE = 1e-3  # processors sum in different orders


def losses(path: Path, *overrides: str) -> list[float]:
    """The smoothed loss of each of 50 updates."""
    config = load_config(path, overrides)
    compute = Compute(torch.device("cpu"), torch.float32)
    with trial(config, prepare(config), compute) as trainer:
        updates = trainer.loader.updates()
        found = [trainer.train_step(next(updates)).read().loss for _ in range(50)]
        updates.close()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_fifty_losses_are_those_that_were_written_down(
    name: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    now = losses(small_yaml(tmp_path), *SETTINGS[name])
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("MT_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {name: now}, indent=1) + "\n")
        return
    assert now == pytest.approx(golden[name], abs=TOLERANCE)
    assert now[-1] < now[0] - 0.5


def test_two_trainings_on_one_machine_are_equal_bit_for_bit(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert losses(config) == losses(config)
    assert losses(config) != losses(config, "seed=2")
