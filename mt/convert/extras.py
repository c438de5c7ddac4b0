"""Packages of other engines, which not everybody has."""

import importlib
from typing import Any

from mt.errors import ExportError


def import_extra(name: str, extra: str) -> Any:
    """The module of a package that the extra `extra` of mt-forge installs. Raises `ExportError`
    without it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ExportError(f"this needs the package {package}; install mt-forge[{extra}]") from error
