"""Checks before an export: is the other engine's package installed, and is the output new?"""

import importlib
from pathlib import Path
from typing import Any

from mt.errors import ExportError


def import_extra(name: str, extra: str) -> Any:
    """Import the module `name`, which the extra `extra` of mt-forge installs.

    Raises `ExportError` if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ExportError(f"this needs the package {package}; install mt-forge[{extra}]") from error


def check_is_new(out: Path) -> None:
    """Raise `ExportError` if the output folder already exists."""
    if out.exists():
        raise ExportError(f"{out}: already exists; choose another folder")
