"""Why a run stops: limits as a table, and signals in a real process."""

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
    ("options", "step", "epoch", "bad", "says"),
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
def test_a_limit_ends_a_run_when_it_is_reached(
    options: dict[str, object], step: int, epoch: int, bad: int, says: str | None
) -> None:
    assert limit_reached(TrainConfig.model_validate(options), step, epoch, bad) == says


def interrupt_a_block(stop: SignalStop) -> None:
    """A block that would take long, and gets a signal."""
    with stop.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)


def test_a_signal_is_a_request_and_an_interruptible_block_ends_at_once() -> None:
    stop = SignalStop()
    before = signal.getsignal(signal.SIGTERM)
    with stop.installed():
        with pytest.raises(Abandoned):
            interrupt_a_block(stop)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Abandoned), stop.interruptible():
            pytest.fail("a block that starts after the signal must not run")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_that_a_launcher_passes_on_is_the_same_request() -> None:
    stop = SignalStop(World(is_launched=True))
    with stop.installed():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal == signal.SIGTERM


def test_a_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal, time\nfrom mt.train.stopping import SignalStop\nstop = SignalStop()\n"
        "with stop.installed():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(5)\n    print('still here')"
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
    """The update at which a watch raises, or None."""
    watch = DivergenceWatch(
        TrainConfig.model_validate({"divergence_window": 4, "divergence_factor": 1.5, **options})
    )
    for step, loss in enumerate(losses, 1):
        try:
            watch.add(step, loss)
        except DivergedError as error:
            return step if f"update {step}" in str(error) and "optim.lr" in str(error) else -1
        watch_again = DivergenceWatch(
            TrainConfig.model_validate(
                {"divergence_window": 4, "divergence_factor": 1.5, **options}
            )
        )
        watch_again.load_state_dict(
            json.loads(json.dumps(watch.state_dict()))
        )  # as a resume after every update would
        watch = watch_again
    return None


@pytest.mark.parametrize(
    ("losses", "options", "step"),
    [
        # one and a half times the best
        ([9.0] * 4 + [4.0] * 4 + [6.1] * 4, {}, 12),
        ([9.0] * 4 + [4.0] * 4 + [5.9] * 40, {}, None),                    # not quite
        # one update that throws the mean of its window over
        ([9.0] * 4 + [4.0] * 4 + [4.0, 50.0] + [4.0] * 40, {}, 12),
        ([9.0] * 4 + [4.0] * 4 + [7.0] * 3, {}, None),                     # too few updates to say
        # small numbers count as one
        ([9.0] * 4 + [0.1] * 4 + [1.4] * 8, {}, None),
        ([9.0] * 4 + [0.1] * 4 + [1.6] * 8, {}, 12),
        ([1.0] * 4 + [90.0] * 40, {"divergence_factor": None}, None),      # turned off
        # an overflow of fp16 counts for nothing
        ([9.0] * 3 + [float("nan"), 9.0] + [4.0] * 4 + [7.0] * 4, {}, 13),
        ([9.0] * 4 + [4.0] * 4 + [float("inf")] + [4.0] * 8, {}, None),
        ([9.0 - 0.1 * i for i in range(80)], {}, None),
    ],
)  # fmt: skip
def test_a_loss_far_above_its_best_is_seen_after_a_window(
    losses: list[float], options: dict[str, object], step: int | None
) -> None:
    assert watched(losses, **options) == step


def scores(bleu: float, chrf: float = 1.0, loss: float = 1.0) -> dict[str, float]:
    return {"bleu": bleu, "chrf": chrf, "loss": loss}


def test_a_metric_that_never_moves_ends_no_run_warns_once_and_leaves_the_choice_to_chrf(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = ScoreWatch("bleu")
    with caplog.at_level("WARNING", logger="mt"):
        found = [watch.add(scores(0.0, chrf)) for chrf in (1.0, 2.0, 3.0, 2.0, 1.0, 1.0, 1.0)]
    assert found == [True, True, True, False, False, False, False]
    assert watch.bad_validations == 0
    assert watch.best == scores(0.0, 3.0)
    assert [message.count("tells nothing") for message in caplog.messages] == [1]


def test_a_metric_that_moves_counts_and_a_resume_goes_on_counting() -> None:
    watch = ScoreWatch("bleu")
    for value in (1.0, 2.0, 1.5):
        watch.add(scores(value))
    again = ScoreWatch("bleu")
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert not again.add(scores(1.9))
    assert (again.bad_validations, again.best) == (2, scores(2.0))
    assert again.add(scores(2.0, chrf=2.0))
    assert again.bad_validations == 0
