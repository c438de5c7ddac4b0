"""What a user can fix: each error says where, what was found and what to do, and knows its exit
code.
"""

from collections.abc import Iterable


class MTError(Exception):
    """Base of all errors shown to a user without a traceback; `exit_code` is what the command line
    exits with.
    """

    exit_code = 1
    is_told = False  # whether another process has told the user


class ConfigError(MTError):
    """A mistake in a YAML file, an override, or a combination of options."""

    exit_code = 2


class DataError(MTError):
    """Text that cannot be read, does not match its other side, or does not suffice."""

    exit_code = 2


class CheckpointError(MTError):
    """A model folder or checkpoint that is missing, damaged or of another kind."""


class ExportError(MTError):
    """A model that a target format cannot express, or whose export does not translate as the model
    does.
    """


class DivergedError(MTError):
    """Training left the numbers: the loss or the gradients are no longer finite."""

    exit_code = 3


class RankError(MTError):
    """What another rank raised; `kind` is the class of that."""

    def __init__(self, message: str, exit_code: int = 1, kind: str = "") -> None:
        super().__init__(message)
        self.exit_code, self.kind = exit_code, kind


class RankLostError(MTError):
    """Another rank was killed, or has fallen silent."""


class Interrupted(MTError):
    """A signal asked the run to stop; 130 after SIGINT, 143 after SIGTERM, with everything saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """What the process will exit with because of `error`."""
    if isinstance(error, MTError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code  # SIGTERM while preparing
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def listed(head: str, lines: Iterable[str]) -> str:
    """A message with several reasons, one per line."""
    return "\n".join([head, *(f"  {line}" for line in lines)])
