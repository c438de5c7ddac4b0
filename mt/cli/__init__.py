"""The command line. Each module of this folder is a command.

An error is reported as one message and an exit code, without a traceback.
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
NAMES = {"importing": "import"}  # commands whose name is a Python keyword
REFUSED_WRITES = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)


def build_app() -> typer.Typer:
    """Build the `mt` command: each module of this folder, except `SHARED`, is a command."""
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
    """Run the command line.

    Exit codes: 0 done, 1 run-time failure, 2 wrong usage, configuration or data, 3 training
    diverged, 130 and 143 interrupted by SIGINT and SIGTERM.
    """
    prepare_environment()
    _prepare_streams()
    signal.signal(signal.SIGTERM, _terminate)
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
    """Stands in for a standard output that was closed when the command started."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise MTError(
            "standard output is closed; redirect it, to /dev/null if the result is not wanted"
        )


def _prepare_streams() -> None:
    """Open closed standard streams, and make every character printable.

    If a standard stream stayed closed, the next opened file would get its file descriptor.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free file descriptor
    if 1 in closed or sys.stdout is None:
        sys.stdout = _ClosedOutput()
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (never closed)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _cannot_unwind(error: BaseException | None) -> bool:
    """Whether the interpreter might never exit by itself.

    That happens if SentencePiece was interrupted during training, because its thread cannot be
    stopped, or if a GPU waits for a rank that is gone.
    """
    is_training_tokenizer = any(thread.name == "mt-tokenizer" for thread in threading.enumerate())
    return is_training_tokenizer or isinstance(getattr(error, "__context__", None), RankLostError)


def _run() -> NoReturn:
    try:
        build_app()()
    except MTError as error:
        _fail("" if error.is_reported else str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does: print nothing.
        _flush_nothing()
        sys.exit(1)
    except OSError as error:
        name = error.filename or ("standard output" if error.errno in REFUSED_WRITES else None)
        _flush_nothing()
        _fail(f"{name}: {error.strerror}" if name else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.exit(0)


def _flush_nothing() -> None:
    """Keep Python from writing the rest of standard output again at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _fail(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):
        # Rank 0 prints no prefix, so that editors can jump to a message that begins with file:line.
        if message:
            sys.stderr.write(f"{message}\n" if rank == "0" else f"rank {rank}: {message}\n")
    sys.exit(code)
