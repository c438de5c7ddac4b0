"""The command line: one module a command, found by being there; errors become one message and an
exit code.
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

SHARED = {"options", "output"}  # modules of this folder that are no command
NAMES = {"importing": "import"}  # of commands that are no name in Python
REFUSED_WRITES = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG, errno.EDQUOT)


def build_app() -> typer.Typer:
    """The `mt` command. A module of this folder holds the command of its name, `SHARED` ones none."""
    app = typer.Typer(
        name="mt",
        help="Machine translation from raw parallel text to a scored model: train, translate, evaluate.",
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
    """Run the command line; exit codes: 0 done, 1 run-time failure, 2 usage, config or data, 3
    diverged, 130 and 143 interrupted.
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
    """Standard output that was closed when the command began: whatever must be written there is an
    error that says so.
    """

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise MTError(
            "standard output is closed; redirect it, to /dev/null if the result is not wanted"
        )


def _prepare_streams() -> None:
    """Leave no standard stream closed, as the next file to be opened would take its number; and let
    no character fail to print.
    """
    closed = [number for number in range(3) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if 1 in closed or sys.stdout is None:
        sys.stdout = _ClosedOutput()
    elif isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (for as long as the process lives)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _cannot_unwind(error: BaseException | None) -> bool:
    """Whether the interpreter might never end by itself.

    Because of SentencePiece, interrupted while it trains, which can neither be ended nor outlive
    the interpreter; or of a GPU that waits for a rank that is gone.
    """
    is_training_tokenizer = any(thread.name == "mt-tokenizer" for thread in threading.enumerate())
    return is_training_tokenizer or isinstance(getattr(error, "__context__", None), RankLostError)


def _run() -> NoReturn:
    try:
        build_app()()
    except MTError as error:
        _fail("" if error.is_reported else str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has left (`| head`): nothing to say.
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
    """What standard output refused is not to be tried again at exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _fail(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):
        # no prefix where there is one process: a message that begins with file:line is one that
        # editors jump to
        if message:
            sys.stderr.write(f"{message}\n" if rank == "0" else f"rank {rank}: {message}\n")
    sys.exit(code)
