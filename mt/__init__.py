"""mt: train, run and score machine translation models.

Importing `mt` does not import PyTorch: `Translator` and `load_config` are loaded on first use.
"""

import sys
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mt.config import load_config as load_config
    from mt.decode.translator import Translator as Translator

__version__ = "0.2.0"
__all__ = ["Translator", "__version__", "load_config"]

_HOMES = {"Translator": "mt.decode.translator", "load_config": "mt.config"}


def _refuse_system() -> NoReturn:
    """Exit with a message and code 2 if this is the command line; else raise `ImportError`."""
    message = f"mt needs Linux or macOS and does not run on {sys.platform}"
    if sys.platform == "win32":
        message = "mt does not run on Windows; install WSL (`wsl --install`) and use mt inside it"
    # `sys.argv[0]` is "-m" while `python -m mt` is importing this package.
    if PurePath(sys.argv[0]).stem in ("mt", "-m"):
        sys.stderr.write(f"{message}\n")
        sys.exit(2)
    raise ImportError(message)


# This is checked before any module is imported, because `mt.files` needs `fcntl` for locks, and
# `mt.runtime.memory` needs `resource` to read memory limits.
if not (find_spec("fcntl") and find_spec("resource")):
    _refuse_system()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
