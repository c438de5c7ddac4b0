"""Read the training curves of a run from its metrics.jsonl, even if the file is damaged."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mt.artifacts import RunFolder

CURVES = {"train": ("loss", "lr", "tokens_per_second"), "valid": ("loss", "bleu", "chrf")}
MAX_POINTS = 2000  # maximum number of points per curve; screens show fewer


def read_curves(run_dir: Path) -> dict[str, dict[str, list[float | None]]]:
    """Return {"train": ..., "valid": ...}, each with a list of steps and one list per metric.

    Long curves are thinned to at most `MAX_POINTS`. A value is None if it is missing or not finite.
    """
    entries: dict[str, list[dict[str, Any]]] = {kind: [] for kind in CURVES}
    for entry in _entries(RunFolder(run_dir).metrics_path):
        entries[entry["kind"]].append(entry)
    return {
        kind: _columns(_thinned(entries[kind]), ("step", *names)) for kind, names in CURVES.items()
    }


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the valid entries.

    The last line may be incomplete if the run is still active or was killed.
    """
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(entry, dict)
            and entry.get("kind") in CURVES
            and isinstance(entry.get("step"), int)
        ):
            yield entry


def _thinned(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep every n-th entry, including the last."""
    stride = -(-len(entries) // MAX_POINTS) or 1
    return entries[::-stride][::-1]


def _columns(
    entries: list[dict[str, Any]], names: tuple[str, ...]
) -> dict[str, list[float | None]]:
    return {name: [_number(entry.get(name)) for entry in entries] for name in names}


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
