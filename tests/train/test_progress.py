"""Training reports: means over tokens, the speed without validation time, and plain log lines."""

import json
import time
from pathlib import Path

import pytest

from mt.config import TrainConfig
from mt.log import MetricLogger
from mt.train.gradients import UpdateStats
from mt.train.progress import TrainProgress


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Read the lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_means_are_weighted_by_the_tokens_of_each_update(tmp_path: Path) -> None:
    progress = TrainProgress(
        TrainConfig(log_every=2),
        MetricLogger(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0),
        0,
        lambda: 7.0,
        "fp32",
    )
    progress.add(1, 0, UpdateStats(loss=1.0, nll=2.0, grad_norm=1.0, lr=0.1, num_tokens=300))
    progress.add(2, 0, UpdateStats(loss=5.0, nll=6.0, grad_norm=1.0, lr=0.2, num_tokens=100))
    progress.close()
    (line,) = read_metrics(tmp_path)
    assert line["step"] == 2
    assert line["loss"] == pytest.approx(2.0)
    assert line["nll"] == pytest.approx(3.0)
    assert line["lr"] == 0.2
    assert line["seconds"] == 7.0


def test_validation_does_not_lower_the_reported_training_speed(
    tmp_path: Path,
) -> None:
    progress = TrainProgress(
        TrainConfig(log_every=1),
        MetricLogger(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0),
        0,
        lambda: 0.0,
        "fp32",
    )
    with progress.timed("valid"):
        time.sleep(0.4)
    progress.add(1, 0, UpdateStats(1.0, 1.0, 1.0, 0.1, num_tokens=1000))
    progress.report_validation(1, {"loss": 1.0, "bleu": 2.0, "chrf": 3.0}, True, 0)
    progress.close()
    train, valid = read_metrics(tmp_path)
    assert train["tokens_per_second"] > 1000 / 0.4
    assert valid["valid_share"] > 0.5
    assert valid["bleu"] == 2.0


def test_without_a_terminal_each_report_is_one_plain_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    monkeypatch.setattr(
        "mt.train.progress.logger.info", lambda message, *args: messages.append(message % args)
    )
    progress = TrainProgress(
        TrainConfig(log_every=1, max_steps=10),
        MetricLogger(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 4),
        4,
        lambda: 0.0,
        "fp32",
    )
    progress.add(5, 2, UpdateStats(1.5, 1.0, 1.0, 1e-3, num_tokens=10))
    progress.close()
    (line,) = messages
    assert line.startswith("update 5/10, epoch 3, loss 1.500, ppl 2.72, ")
    assert line.endswith("lr 1.00e-03, ETA 0:00")
