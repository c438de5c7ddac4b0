"""The command line. Each module in this folder implements the command with the same name.

An error ends a command with a message and an exit code, without a traceback.
"""

import contextlib
import errno
import importlib
import io
import os
import pkgutil
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer

from mt import __version__
from mt.errors import MTError, RankLostError
from mt.runtime.environment import prepare_environment

SHARED = {"options", "output"}  # modules that are not commands
# Maps module names to command names, for commands whose name is a Python keyword.
NAMES = {"importing": "import"}
# Write errors. Without a file name, they are reported as errors of standard output.
REFUSED_WRITES = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)


def build_app() -> typer.Typer:
    """Build the `mt` command, with a subcommand for each module that is not in `SHARED`."""
    app = typer.Typer(
        name="mt",
        help="Train machine translation models, translate text with them, and score them.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_global_options)
    for name in sorted({module.name for module in pkgutil.iter_modules(__path__)} - SHARED):
        command = getattr(importlib.import_module(f"{__name__}.{name}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(NAMES.get(name, name))(command)
    return app


def _global_options(
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        typer.echo(f"mt {__version__}")
        raise typer.Exit
    from mt.log import setup_logging

    setup_logging()


def main() -> NoReturn:
    """Run the command line and exit.

    The exit code is 0 for success, 1 for a run-time failure, 2 for wrong usage, configuration or
    data, 3 if training diverged, 130 after SIGINT, and 143 after SIGTERM.
    """
    prepare_environment()
    _prepare_streams()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        _run()
    finally:
        error = sys.exc_info()[1]
        if _cannot_unwind(error):
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(
                error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
            )


class _ClosedOutput(io.TextIOBase):
    """Replaces standard output if it was closed when the command started.

    Every write raises `MTError`.
    """

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise MTError(
            "standard output is closed; redirect it to a file, or to /dev/null to discard it"
        )


def _prepare_streams() -> None:
    """Open the standard streams that are closed, and escape characters that cannot be encoded.

    If a stream stayed closed, the next file to be opened would get its file descriptor, and
    messages would be written to that file.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # this gets the lowest free file descriptor
    if 1 in closed or sys.stdout is None:
        sys.stdout = _ClosedOutput()
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _cannot_unwind(error: BaseException | None) -> bool:
    """Whether a normal exit could hang, so that `main` must use `os._exit`.

    An exit hangs if SentencePiece is still training in its thread, which cannot be stopped, or if
    a GPU waits for a rank that no longer exists.
    """
    is_training_tokenizer = any(thread.name == "mt-tokenizer" for thread in threading.enumerate())
    return is_training_tokenizer or isinstance(getattr(error, "__context__", None), RankLostError)


def _run() -> NoReturn:
    try:
        build_app()()
    except MTError as error:
        _exit_with("" if error.is_reported else str(error), error.exit_code)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. That is not worth a message.
        _discard_stdout()
        sys.exit(1)
    except OSError as error:
        name = error.filename or ("standard output" if error.errno in REFUSED_WRITES else None)
        _discard_stdout()
        _exit_with(f"{name}: {error.strerror}" if name else str(error), 1)
    except KeyboardInterrupt:
        _exit_with("interrupted", 130)
    sys.exit(0)


def _discard_stdout() -> None:
    """Redirect standard output to /dev/null, so that flushing it at exit does not fail again."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _exit_with(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):
        # Rank 0 prints no prefix, because editors can jump to messages that begin with file:line.
        if message:
            sys.stderr.write(f"{message}\n" if rank == "0" else f"rank {rank}: {message}\n")
    sys.exit(code)
