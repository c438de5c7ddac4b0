"""mt: train, run and score machine translation models. Importing it imports no torch; the names below load on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt.config import load_config as load_config
    from mt.decode.translator import Translator as Translator

__version__ = "0.1.0"
__all__ = ["Translator", "__version__", "load_config"]

_HOMES = {"Translator": "mt.decode.translator", "load_config": "mt.config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
