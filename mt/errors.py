"""The errors that mt reports to the user.

Each message says where the error is, what is wrong, and what to do about it.
"""

from collections.abc import Iterable


class MTError(Exception):
    """Base class of the errors that the command line prints without a traceback."""

    exit_code = 1  # exit code of the command line
    is_reported = False  # whether another process has already printed the message


class ConfigError(MTError):
    """A mistake in a YAML file, an override, or a combination of options."""

    exit_code = 2


class DataError(MTError):
    """Text that cannot be read, does not match the other language, or is too short."""

    exit_code = 2


class CheckpointError(MTError):
    """A model folder or checkpoint that is missing, damaged, or not suitable for this use."""


class ExportError(MTError):
    """A model that the target format cannot express, or an export whose translations differ."""


class DivergedError(MTError):
    """Training has diverged: the loss or the gradients are not finite."""

    exit_code = 3


class RankError(MTError):
    """An error that was raised on another rank. `kind` is the name of its class."""

    def __init__(self, message: str, exit_code: int = 1, kind: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.kind = exit_code, kind


class RankLostError(MTError):
    """Another rank was killed or has stopped responding."""


class Interrupted(MTError):
    """A signal stopped the run after everything was saved.

    The exit code is 130 after SIGINT and 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """Return the exit code of a process that ends with `error`."""
    if isinstance(error, MTError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code  # SIGTERM causes this while data is being prepared
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def join_reasons(head: str, reasons: Iterable[str]) -> str:
    """Return a message that lists several reasons, one per line, below `head`."""
    return "\n".join([head, *(f"  {reason}" for reason in reasons)])
