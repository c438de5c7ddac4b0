"""Why a run stops: a signal from outside, its own limits, or a loss that has left its course."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mt.config import TrainConfig
from mt.config.ranking import rank
from mt.errors import DivergedError
from mt.evaluation import TITLES
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
REMEDIES = (
    "Give the same command with a lower optim.lr, a longer optim.warmup_steps or a smaller optim.clip_norm, which goes on from the last "
    "checkpoint; or start again with model.norm: pre"
)
SAME_REQUEST = (
    3.0  # seconds within which a launcher may pass on a signal that a rank has had already
)
SUSPICIOUS = 3  # validations with the very same value of the metric
LEAST_BEST = 1.0  # nats a token; below it a loss may well double without harm


class Abandoned(Exception):
    """Raised inside an interruptible block when a signal arrives."""


class SignalStop:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours after its update; a
    second one ends the process at once.

    Of several ranks all honour what any of them got. Under a launcher a second signal counts from
    `SAME_REQUEST` seconds on.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.signal: signal.Signals | None = None  # as all ranks know it
        self._own: signal.Signals | None = None
        self._own_at = 0.0
        self._interruptible = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Listen for signals while the block runs."""
        previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal abandons at once with `Abandoned`."""
        self._interruptible = True
        try:
            if self._own is not None:
                raise Abandoned
            yield
        finally:
            self._interruptible = False

    def share_signal(self) -> None:
        """Tell the other ranks of a signal that came here, and hear of theirs; a collective."""
        if not self.world.is_alone and (number := self.world.all_reduce_max(self._own or 0)):
            self.signal = signal.Signals(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._own is None:
            self._own, self._own_at = signal.Signals(number), time.monotonic()
        if self.world.is_alone:
            self.signal = self._own
        if not self.world.is_launched:
            for each in EXIT_CODES:
                signal.signal(each, signal.SIG_DFL)
        elif time.monotonic() - self._own_at > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._interruptible:
            raise Abandoned


class ScoreWatch:
    """The best validation so far by `metric`, and how many have passed since; ties are broken by
    chrF, then by the loss.

    While the metric itself has never moved, as BLEU does not at 0.00, validations do not count
    against patience.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.best: dict[str, float] | None = None
        self.bad_validations = 0
        self.count = 0  # validations
        self.first: float | None = None  # value of the metric
        self.has_moved = False

    def add(self, scores: dict[str, float]) -> bool:
        """Take in a validation; whether it is the best so far."""
        if self.first is None:
            self.first = scores[self.metric]
        self.count += 1
        self.has_moved = self.has_moved or scores[self.metric] != self.first
        if self.count == SUSPICIOUS and not self.has_moved:
            logger.warning(
                "%s has been %.2f at every validation so far and tells nothing: chrF and the loss decide which checkpoint is the best, and "
                "train.patience does not count; is data.tgt_lang right? train.metric: chrf is the metric for most languages",
                TITLES[self.metric], self.first,
            )  # fmt: skip
        if self.best is None or rank(self.metric, scores) > rank(self.metric, self.best):
            self.best, self.bad_validations = scores, 0
            return True
        self.bad_validations += self.has_moved
        return False

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update({name: state[name] for name in vars(self) if name != "metric"})


def limit_reached(config: TrainConfig, step: int, epoch: int, bad_validations: int) -> str | None:
    """The option whose limit a run has reached, in words, or None."""
    if config.max_steps is not None and step >= config.max_steps:
        return f"train.max_steps: {config.max_steps}"
    if config.max_epochs is not None and epoch >= config.max_epochs:
        return f"train.max_epochs: {config.max_epochs}"
    if config.patience is not None and bad_validations >= config.patience:
        return f"train.patience: {config.patience} validations without a better {config.metric}"
    return None


class DivergenceWatch:
    """Compares the mean loss of each `divergence_window` updates with the best such mean (after
    Marian's --throw-on-divergence).
    """

    def __init__(self, config: TrainConfig) -> None:
        self.factor, self.window = config.divergence_factor, config.divergence_window
        self.total, self.count = 0.0, 0
        self.best: float | None = None

    def add(self, step: int, loss: float) -> None:
        """Take in the loss of an update. Raises `DivergedError` where a window's mean is far above
        the best.
        """
        if not math.isfinite(loss):  # an overflow of fp16, which was left out
            return
        self.total, self.count = self.total + loss, self.count + 1
        if self.count < self.window:
            return
        mean, best = self.total / self.count, self.best
        self.total, self.count = 0.0, 0
        self.best = mean if best is None else min(best, mean)
        if (
            self.factor is not None
            and best is not None
            and mean > self.factor * max(best, LEAST_BEST)
        ):
            raise DivergedError(
                f"update {step}: the loss of the last {self.window} updates is {mean:.3f} on average, its best was {best:.3f} "
                f"(train.divergence_factor: {self.factor}). {REMEDIES}"
            )

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {"total": self.total, "count": self.count, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.total, self.count, self.best = state["total"], state["count"], state["best"]
