"""Start child processes from a warm process, which has already imported everything `mt` needs.

A child starts in hundredths of a second, because it need not import PyTorch. The warm process never
runs a computation, so it is safe to fork; the test process is not.
"""

import importlib.util
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle

import mt.cli
from mt.runtime.template import Child, Template

ROOT = Path(__file__).parent.parent.parent
MODULES = (
    "survival.warm", "torch.distributed.checkpoint", "torch.distributed.fsdp", "mt.runs.start",
    "mt.runs.inspect", "mt.runs.replay", "mt.report.contents", "mt.decode.output",
    *(f"mt.cli.{module.name}" for module in pkgutil.iter_modules(mt.cli.__path__)),
)  # fmt: skip
OPTIONAL = {"tensorboard": "torch.utils.tensorboard", "pytest": "pytest"}

_template: Template | None = None


def template() -> Template:
    """Return the warm process that belongs to this process, and start it on first use."""
    global _template
    if _template is None or not _template.is_usable():
        # `mt` sets this variable as well; it must be set before PyTorch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
        installed = [module for name, module in OPTIONAL.items() if importlib.util.find_spec(name)]
        _template = Template([*MODULES, *installed])
    return _template


def start(
    function: Callable[[], Any],
    files: Sequence[str | Path],
    cwd: Path = ROOT,
    environment: Mapping[str, object] | None = None,
) -> Child:
    """Start a child that calls `function`, which may be a closure, and then exits.

    The exit code is that of a program that does nothing but call `function`. `files` are the files
    for standard input, output and error. `environment` is added to the environment variables of
    this process.
    """
    variables = {name: str(value) for name, value in {**os.environ, **(environment or {})}.items()}
    pickled = cloudpickle.dumps(function)
    return template().start(partial(_run, pickled, list(map(str, files)), cwd, variables))


def command(*args: Any) -> Callable[[], None]:
    """Return a function for `start` that runs the real `mt` command with these arguments."""

    def run() -> None:
        sys.argv = ["mt", *map(str, args)]
        mt.cli.main()

    return run


def _run(
    function: bytes, files: Sequence[str], cwd: Path, variables: Mapping[str, str], pipe: Connection
) -> None:
    """Set up files, signals and environment in the child, and call the pickled `function`."""
    import torch

    for number, path in enumerate(files):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", encoding="utf-8", buffering=1, closefd=False) for number in (1, 2)
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.resetwarnings()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)  # the same number on every machine
    cloudpickle.loads(function)()
