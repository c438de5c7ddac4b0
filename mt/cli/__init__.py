"""The command line: one module a command, found by being there; errors become one message and an exit code."""

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

import typer

from mt import __version__
from mt.environment import prepare_environment
from mt.errors import MTError, RankLostError


def build_app() -> typer.Typer:
    """The `mt` command with every module of this folder registered."""
    app = typer.Typer(
        name="mt",
        help="Machine translation from raw parallel text to a scored model: train, translate, evaluate.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_global_options)
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        importlib.import_module(f"{__name__}.{module.name}").register(app)
    return app


def _global_options(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        typer.echo(f"mt {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command line; exit codes: 0 done, 1 run-time failure, 2 usage, config or data, 3 diverged, 130 and 143 interrupted."""
    prepare_environment()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run()
    finally:
        error = sys.exc_info()[1]
        if _cannot_unwind(error):
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


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
        _fail("" if error.is_told else str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has left (`| head`): nothing to say, and nothing to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _fail(message: str, code: int) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    with contextlib.suppress(OSError):
        if message:  # no prefix where there is one process: a message that begins with file:line is one that editors jump to
            sys.stderr.write(f"{message}\n" if rank == "0" else f"rank {rank}: {message}\n")
    sys.exit(code)
