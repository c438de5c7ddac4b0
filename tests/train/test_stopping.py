"""The reasons why a run stops: limits, real signals, and a loss or score that gets worse."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mt.config import TrainConfig
from mt.errors import DivergedError
from mt.runtime.world import World
from mt.train.stopping import Abandoned, DivergenceWatch, ScoreWatch, SignalStop, limit_reached
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("options", "step", "epoch", "bad", "reason"),
    [
        ({"max_steps": 10}, 9, 99, 99, None),
        ({"max_steps": 10}, 10, 0, 0, "train.max_steps: 10"),
        ({"max_steps": None, "max_epochs": 2}, 10**9, 1, 0, None),
        ({"max_steps": None, "max_epochs": 2}, 1, 2, 0, "train.max_epochs: 2"),
        ({"patience": 3, "metric": "chrf"}, 1, 0, 2, None),
        (
            {"patience": 3, "metric": "chrf"},
            1,
            0,
            3,
            "train.patience: 3 validations without a better chrf",
        ),
    ],
)
def test_a_limit_ends_the_run_when_it_is_reached(
    options: dict[str, object], step: int, epoch: int, bad: int, reason: str | None
) -> None:
    assert limit_reached(TrainConfig.model_validate(options), step, epoch, bad) == reason


def interrupt_a_block(stop: SignalStop) -> None:
    """Send this process a signal inside an interruptible block that would take five seconds."""
    with stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_signal_is_remembered_and_ends_an_interruptible_block_at_once() -> None:
    stop = SignalStop()
    before = signal.getsignal(signal.SIGTERM)
    with stop.installed():
        with pytest.raises(Abandoned):
            interrupt_a_block(stop)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Abandoned), stop.interruptible():
            pytest.fail("a block that starts after the signal must not run")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_repeated_by_a_launcher_does_not_end_the_process() -> None:
    stop = SignalStop(World(is_launched=True))
    with stop.installed():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM


class WorldOfReceivers(World):
    """A world whose other ranks have received `signals`, where 0 stands for no signal."""

    def __init__(self, signals: list[int]) -> None:
        super().__init__(size=1 + len(signals), is_launched=True)
        self.signals = signals

    def all_reduce_max(self, value: int) -> int:
        return max([value, *self.signals])


@pytest.mark.parametrize("received", [0, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "others", [[], [0], [signal.SIGINT], [0, signal.SIGTERM, signal.SIGINT], [0, 0]]
)
def test_after_sharing_every_rank_knows_the_highest_signal_of_all(
    received: int, others: list[int]
) -> None:
    stop = SignalStop(WorldOfReceivers(others))
    with stop.installed():
        if received:
            os.kill(os.getpid(), received)
        assert stop.signal == (None if others or not received else received)
        stop.share_signal()
    assert (stop.signal or 0) == max([received, *others])


def test_a_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal, time\nfrom mt.train.stopping import SignalStop\nstop = SignalStop()\n"
        "with stop.installed():\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    print('one', flush=True)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(5)\n    print('still here')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert result.stdout == "one\n"
    assert result.returncode == -signal.SIGTERM


def watched(losses: list[float], **options: object) -> int | None:
    """Return the update at which a `DivergenceWatch` raises, or None if it never raises.

    After each update, the watch is replaced with one that has loaded its state.
    """
    config = TrainConfig.model_validate(
        {"divergence_window": 4, "divergence_factor": 1.5, **options}
    )
    watch = DivergenceWatch(config)
    for step, loss in enumerate(losses, 1):
        try:
            watch.add(step, loss)
        except DivergedError as error:
            return step if f"update {step}" in str(error) and "optim.lr" in str(error) else -1
        saved, watch = json.dumps(watch.state_dict()), DivergenceWatch(config)
        watch.load_state_dict(json.loads(saved))
    return None


@pytest.mark.parametrize(
    ("losses", "options", "step"),
    [
        # The mean is more than one and a half times the best mean.
        ([9.0] * 4 + [4.0] * 4 + [6.1] * 4, {}, 12),
        ([9.0] * 4 + [4.0] * 4 + [5.9] * 40, {}, None),                    # slightly less than that
        # A single update raises the mean of its window.
        ([9.0] * 4 + [4.0] * 4 + [4.0, 50.0] + [4.0] * 40, {}, 12),
        ([9.0] * 4 + [4.0] * 4 + [7.0] * 3, {}, None),                     # the window is not full
        # A best loss below 1 counts as 1.
        ([9.0] * 4 + [0.1] * 4 + [1.4] * 8, {}, None),
        ([9.0] * 4 + [0.1] * 4 + [1.6] * 8, {}, 12),
        ([1.0] * 4 + [90.0] * 40, {"divergence_factor": None}, None),      # the watch is turned off
        # An overflow in fp16 is ignored.
        ([9.0] * 3 + [float("nan"), 9.0] + [4.0] * 4 + [7.0] * 4, {}, 13),
        ([9.0] * 4 + [4.0] * 4 + [float("inf")] + [4.0] * 8, {}, None),
        ([9.0 - 0.1 * i for i in range(80)], {}, None),
    ],
)  # fmt: skip
def test_a_loss_far_above_its_best_raises_at_the_end_of_its_window(
    losses: list[float], options: dict[str, object], step: int | None
) -> None:
    assert watched(losses, **options) == step


def scores(bleu: float, chrf: float = 1.0, loss: float = 1.0) -> dict[str, float]:
    return {"bleu": bleu, "chrf": chrf, "loss": loss}


def test_a_metric_that_never_changes_warns_once_and_lets_chrf_decide(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = ScoreWatch("bleu")
    with caplog.at_level("WARNING", logger="mt"):
        improved = [watch.add(scores(0.0, chrf)) for chrf in (1.0, 2.0, 3.0, 2.0, 1.0, 1.0, 1.0)]
    assert improved == [True, True, True, False, False, False, False]
    assert watch.bad_validations == 0
    assert watch.best == scores(0.0, 3.0)
    assert [message.count("in every validation so far") for message in caplog.messages] == [1]


def test_a_resumed_watch_continues_to_count_bad_validations() -> None:
    watch = ScoreWatch("bleu")
    for value in (1.0, 2.0, 1.5):
        watch.add(scores(value))
    again = ScoreWatch("bleu")
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert not again.add(scores(1.9))
    assert (again.bad_validations, again.best) == (2, scores(2.0))
    assert again.add(scores(2.0, chrf=2.0))
    assert again.bad_validations == 0
