"""The reasons for a run to stop: a signal, a limit in the configuration, or a diverging loss."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from mt.config import TrainConfig
from mt.config.ranking import ranking_key
from mt.errors import DivergedError
from mt.evaluation import TITLES
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
REMEDIES = (
    "Run the same command with a lower optim.lr, more optim.warmup_steps or a smaller "
    "optim.clip_norm to resume from the last checkpoint; or start again with model.norm: pre"
)
# A signal that is repeated within this many seconds counts as the same one, because launchers pass
# signals on to their ranks, which may have received them already.
SAME_SIGNAL = 3.0
CONSTANT_SCORES = 3  # warn after this many validations with the same value of the metric
# In nats per token. A lower loss counts as this much, because very small losses can double safely.
MIN_LOSS = 1.0


class Abandoned(Exception):
    """Raised when a signal arrives during an `interruptible` block, to leave it at once."""


class SignalStop:
    """Lets the training loop finish its update and save when SIGINT or SIGTERM arrives.

    A second signal ends the process at once. Under a launcher, it must arrive more than
    `SAME_SIGNAL` seconds after the first one. If any rank receives a signal, all ranks stop.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.signal: signal.Signals | None = None  # the signal that all ranks know of
        self._received: signal.Signals | None = None  # the signal that this rank has received
        self._received_at = 0.0
        self._interruptible = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle signals while the block runs."""
        previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `Abandoned` inside the block as soon as a signal arrives."""
        self._interruptible = True
        try:
            if self._received is not None:
                raise Abandoned
            yield
        finally:
            self._interruptible = False

    def share_signal(self) -> None:
        """Tell all ranks about a signal that any of them received. All ranks must call this."""
        number = self.world.all_reduce_max(self._received or 0)
        if number:
            self.signal = signal.Signals(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received, self._received_at = signal.Signals(number), time.monotonic()
        if self.world.is_alone:
            self.signal = self._received
        if not self.world.is_launched:
            for handled in EXIT_CODES:
                signal.signal(handled, signal.SIG_DFL)
        elif time.monotonic() - self._received_at > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._interruptible:
            raise Abandoned


class ScoreWatch:
    """Tracks the best validation and how many validations came after it.

    Validations are compared by `metric`, then by chrF, then by the loss. They do not count against
    `train.patience` as long as the metric always has the same value, such as a BLEU of 0.00.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.best: dict[str, float] | None = None
        self.bad_validations = 0
        self.count = 0  # number of all validations
        self.first: float | None = None  # the value of the metric in the first validation
        self.has_moved = False

    def add(self, scores: dict[str, float]) -> bool:
        """Add the scores of a validation, and return whether they are the best so far."""
        if self.first is None:
            self.first = scores[self.metric]
        self.count += 1
        self.has_moved |= scores[self.metric] != self.first
        if self.count == CONSTANT_SCORES and not self.has_moved:
            logger.warning(
                f"{TITLES[self.metric]} was {self.first:.2f} in every validation so far: chrF and "
                "the loss decide which checkpoint is the best, and train.patience is ignored.\n"
                "Check data.tgt_lang, or set train.metric: chrf, which suits most languages"
            )
        if self.best is None or ranking_key(self.metric, scores) > ranking_key(
            self.metric, self.best
        ):
            self.best, self.bad_validations = scores, 0
            return True
        self.bad_validations += self.has_moved
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint, as JSON values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        vars(self).update({name: state[name] for name in vars(self) if name != "metric"})


def limit_reached(config: TrainConfig, step: int, epoch: int, bad_validations: int) -> str | None:
    """Return a text about the limit that the run has reached, or None."""
    if config.max_steps is not None and step >= config.max_steps:
        return f"train.max_steps: {config.max_steps}"
    if config.max_epochs is not None and epoch >= config.max_epochs:
        return f"train.max_epochs: {config.max_epochs}"
    if config.patience is not None and bad_validations >= config.patience:
        return f"train.patience: {config.patience} validations without a better {config.metric}"
    return None


class DivergenceWatch:
    """Detects a diverging loss, similar to Marian's --throw-on-divergence.

    It compares the mean loss of each window of `train.divergence_window` updates with the lowest
    mean of an earlier window.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.factor, self.window = config.divergence_factor, config.divergence_window
        self.total, self.count = 0.0, 0
        self.best: float | None = None

    def add(self, step: int, loss: float) -> None:
        """Add the loss of an update.

        Raises `DivergedError` if the mean of a window is more than `train.divergence_factor` times
        the lowest mean.
        """
        if not math.isfinite(loss):  # from an overflow in fp16; this update was skipped
            return
        self.total += loss
        self.count += 1
        if self.count < self.window:
            return
        mean, best = self.total / self.count, self.best
        self.total, self.count = 0.0, 0
        self.best = mean if best is None else min(best, mean)
        if (
            self.factor is not None
            and best is not None
            and mean > self.factor * max(best, MIN_LOSS)
        ):
            raise DivergedError(
                f"update {step}: the mean loss of the last {self.window} updates is {mean:.3f}, "
                f"its best was {best:.3f} (train.divergence_factor: {self.factor}). {REMEDIES}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store in a checkpoint, as JSON values."""
        return {"total": self.total, "count": self.count, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.total, self.count, self.best = state["total"], state["count"], state["best"]
