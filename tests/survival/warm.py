"""Children of a process that has imported all that `mt` needs, and has never computed.

Starting one takes hundredths of a second instead of an import of PyTorch, and a process of the
campaign or of the tests, which may have computed, is never forked.
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
    """The warm process of this one; it starts on first use."""
    global _template
    if _template is None or not _template.is_usable():
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # before it loads PyTorch, as `mt` does
        there = [module for name, module in OPTIONAL.items() if importlib.util.find_spec(name)]
        _template = Template([*MODULES, *there])
    return _template


def start(
    function: Callable[[], Any],
    files: Sequence[str | Path],
    cwd: Path = ROOT,
    environment: Mapping[str, object] | None = None,
) -> Child:
    """A child that calls `function`, which may be a closure, and exits as that says.

    `files` are its standard input, output and error. `environment` comes on top of this process's.
    """
    variables = {name: str(value) for name, value in {**os.environ, **(environment or {})}.items()}
    pickled = cloudpickle.dumps(function)
    return template().start(partial(_run, pickled, list(map(str, files)), cwd, variables))


def command(*args: Any) -> Callable[[], None]:
    """The real `mt` with these arguments, as a function for `start`."""

    def run() -> None:
        sys.argv = ["mt", *map(str, args)]
        mt.cli.main()

    return run


def _run(
    function: bytes, files: Sequence[str], cwd: Path, variables: Mapping[str, str], pipe: Connection
) -> None:
    """In the child: forget the template, and become what was asked for."""
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
    torch.set_num_threads(1)  # whatever the machine
    cloudpickle.loads(function)()
