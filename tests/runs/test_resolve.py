"""Precision and threads are chosen once, kept on resume, and the same on every rank."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mt.artifacts import ModelFolder
from mt.config import Config
from mt.errors import ConfigError, MTError, RankError
from mt.runs import resolve
from mt.runs.resolve import start_computing
from mt.runtime.device import PRECISION_NAMES, set_up_compute
from mt.runtime.world import World
from tests.runtime.ranks import on_ranks

CPU = {"device": "cpu", "model": {"preset": "tiny"}}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Yield the messages that `mt` logs; changes to the number of threads have no effect."""
    logged: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logged.append(record.getMessage())

    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(resolve, "num_cores", lambda: 4)
    handler, logger = Handler(), logging.getLogger("mt")
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    yield logged
    logger.removeHandler(handler)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., ModelFolder]:
    """Return a function that writes a checkpoint whose state.json has the given content."""

    def write(**state: Any) -> ModelFolder:
        (tmp_path / "training").mkdir()
        (tmp_path / "training/state.json").write_text(json.dumps(state))
        return ModelFolder(tmp_path)

    return write


@pytest.mark.parametrize("native", ["0", "1"])
@pytest.mark.parametrize(
    ("settings", "recorded", "expected", "warnings"),
    [
        ({}, None, ("auto", 3), []),
        ({}, {}, ("auto", 3), []),  # an old checkpoint records neither setting
        ({}, {"precision": "fp32", "threads": 2}, ("fp32", 2), []),
        ({"precision": "fp32", "threads": 2}, {"precision": "fp32", "threads": 2}, ("fp32", 2), []),
        ({"precision": "fp32", "threads": 2}, {}, ("fp32", 2), []),
        (
            {"precision": "fp32", "threads": 1},
            {"precision": "bf16", "threads": 2},
            ("fp32", 1),
            [
                "changed since the last start: precision: bf16 -> fp32",
                "changed since the last start: threads: 2 -> 1",
            ],
        ),
        (
            {},
            {"precision": "fp32", "threads": 8},
            ("fp32", 8),
            [
                "threads: 8 as before, but this machine has only 4 cores; threads=4 is faster "
                "here, but changes rounding, so results are not bit-identical"
            ],
        ),
        ({"threads": 8}, {"precision": "fp32", "threads": 8}, ("fp32", 8), []),
    ],
)
def test_open_settings_are_kept_from_the_checkpoint_and_changes_are_logged(
    settings: dict[str, Any],
    recorded: dict[str, Any] | None,
    expected: tuple[str, int],
    warnings: list[str],
    native: str,
    checkpoint: Callable[..., Path],
    messages: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MT_NATIVE_BF16", native)
    resumed = None if recorded is None else checkpoint(**recorded)
    config = Config.model_validate({**CPU, **settings})
    resolved, chosen = start_computing(config, resumed, World())
    precision = {"0": "fp32", "1": "bf16"}[native] if expected[0] == "auto" else expected[0]
    assert (resolved.precision, resolved.threads) == (precision, expected[1])
    assert PRECISION_NAMES[chosen.dtype] == precision
    assert messages == warnings


def test_bf16_without_hardware_is_kept_and_warned_about_once(
    checkpoint: Callable[..., Path], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT_NATIVE_BF16", "0")
    resumed = checkpoint(precision="bf16", threads=1)
    resolved, _ = start_computing(Config.model_validate(CPU), resumed, World())
    assert resolved.precision == "bf16"
    [message] = messages
    assert "bf16 has no hardware support on this cpu" in message


def test_an_unsupported_precision_is_an_error_that_says_how_to_change_it(
    checkpoint: Callable[..., Path], messages: list[str]
) -> None:
    resumed = checkpoint(precision="fp16", threads=1)
    with pytest.raises(ConfigError, match="fp16 is for GPUs") as error:
        start_computing(Config.model_validate(CPU), resumed, World())
    assert "trained in fp16 so far; set precision" in str(error.value)
    config = Config.model_validate({**CPU, "precision": "fp32"})
    assert start_computing(config, resumed, World())[0].precision == "fp32"
    assert messages == ["changed since the last start: precision: fp16 -> fp32"]


@pytest.mark.parametrize(("native", "expected"), [((0, 1), "fp32"), ((1, 0), "bf16")])
def test_all_ranks_use_the_precision_and_threads_of_rank_0(
    native: tuple[int, int], expected: str
) -> None:
    def work(world: World) -> Any:
        os.environ["MT_NATIVE_BF16"] = str(native[world.rank])
        torch.set_num_threads(1 + 4 * world.rank)
        warnings: list[str] = []
        with patch.object(
            resolve.logger, "warning", lambda text, *values: warnings.append(text % values)
        ):
            resolved, chosen = start_computing(Config.model_validate(CPU), None, world)
        slow = [message for message in warnings if "on rank 1, which slows down" in message]
        return (
            resolved.precision,
            PRECISION_NAMES[chosen.dtype],
            resolved.threads,
            chosen.num_threads,
            slow,
        )

    first, second = on_ranks(2, work)
    assert first[:4] == second[:4] == (expected, expected, 2, 1)
    assert len(first[4]) == (expected == "bf16")


def test_a_rank_that_does_not_support_the_precision_is_named_on_all_ranks() -> None:
    def work(world: World) -> Any:
        def set_up(*args: Any, **options: Any) -> Any:
            if world.rank == 1 and args[1] == "bf16":
                raise ConfigError("precision: bf16 is not for this device")
            return set_up_compute(*args, **options)

        config = Config.model_validate({**CPU, "precision": "bf16", "threads": 1})
        with patch.object(resolve, "set_up_compute", set_up), pytest.raises(MTError) as error:
            start_computing(config, None, world)
        return type(error.value), str(error.value), error.value.exit_code

    message = "precision: bf16 is not for this device"
    assert on_ranks(2, work) == [(RankError, f"rank 1: {message}", 2), (ConfigError, message, 2)]


def test_the_recorded_threads_are_those_of_the_machine_not_of_a_rank(
    checkpoint: Callable[..., Path],
) -> None:
    resumed = checkpoint(precision="fp32", threads=3)

    def work(world: World) -> Any:
        resolved, _ = start_computing(Config.model_validate(CPU), resumed, world)
        return resolved.threads, torch.get_num_threads()

    assert on_ranks(2, work) == [(3, 1), (3, 1)]
