"""Why a run stops: a signal from outside, or its own limits."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from mt.config import TrainConfig

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Abandoned(Exception):
    """Raised inside an interruptible block when a signal arrives."""


class SignalStop:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours after its update; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
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
            if self.signal is not None:
                raise Abandoned
            yield
        finally:
            self._interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in EXIT_CODES:
            signal.signal(each, signal.SIG_DFL)
        if self._interruptible:
            raise Abandoned


def limit_reached(config: TrainConfig, step: int, epoch: int, bad_validations: int) -> str | None:
    """The option whose limit a run has reached, in words, or None."""
    if config.max_steps is not None and step >= config.max_steps:
        return f"train.max_steps: {config.max_steps}"
    if config.max_epochs is not None and epoch >= config.max_epochs:
        return f"train.max_epochs: {config.max_epochs}"
    if config.patience is not None and bad_validations >= config.patience:
        return f"train.patience: {config.patience} validations without a better {config.metric}"
    return None
