"""The scorecard: a JSON file with everything needed to reproduce a score."""

import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mt import __version__
from mt.artifacts import ModelFolder, read_json
from mt.config import Config
from mt.decode.translator import Translator
from mt.errors import CheckpointError
from mt.runtime.device import PRECISION_NAMES
from mt.runtime.environment import num_cores

FORMAT = 1
PACKAGES = ("torch", "sentencepiece", "sacrebleu", "numpy")


def scorecard(
    folder: ModelFolder,
    config: Config,
    translator: Translator,
    scoring: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Build the scorecard of an evaluation.

    `scoring` says how the scores were computed. `results` has an entry for each test set, with the
    scores, the fingerprint of the text, and the name of the file with the translations.
    """
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "format": FORMAT,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": str(folder),
        "weights": folder.weights_hash(),
        "training": folder.provenance(),
        "seed": config.seed,
        "config": config.model_dump(),
        "decode": translator.decode.model_dump(),
        "compute": str(translator.compute),
        "precision": PRECISION_NAMES[translator.compute.dtype],
        "hardware": hardware(),
        "versions": {"mt": __version__, "python": platform.python_version(), **versions},
        "scoring": scoring,
        "results": list(results),
    }


def read_scorecard(path: Path) -> dict[str, Any]:
    """Read a scorecard. Raises `CheckpointError` if the file is not a scorecard of this format."""
    card = read_json(path)
    keys = "format config decode scoring results training precision versions hardware"
    missing = set(keys.split()) - card.keys()
    if missing or card["format"] != FORMAT:
        what = f"{', '.join(sorted(missing))} missing" if missing else f"format {card['format']!r}"
        raise CheckpointError(
            f"{path} is not a scorecard that this version of mt can read ({what})"
        )
    return card


def hardware() -> dict[str, Any]:
    """Describe the machine: processor, number of cores this process may use, and GPU."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text(errors="replace").splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.platform(), "processor": model, "cores": num_cores(), "gpu": gpu}
