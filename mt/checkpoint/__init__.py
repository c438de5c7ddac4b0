"""Model folders and checkpoints: written whole or not at all, verified by size and SHA-256 before use, never unpickled."""

from mt.checkpoint.folder import (
    LoadedModel,
    average_checkpoints,
    link_target,
    load_model,
    load_weights,
    read_config,
    read_provenance,
    resolve_model,
    write_model_folder,
)
from mt.checkpoint.manager import CheckpointManager, TrainingState, load_training, run_checkpoints
from mt.checkpoint.manifest import MANIFEST, TRAINING, num_values, read_json, seal, verify

__all__ = [
    "MANIFEST",
    "TRAINING",
    "CheckpointManager",
    "LoadedModel",
    "TrainingState",
    "average_checkpoints",
    "link_target",
    "load_model",
    "load_training",
    "load_weights",
    "num_values",
    "read_config",
    "read_json",
    "read_provenance",
    "resolve_model",
    "run_checkpoints",
    "seal",
    "verify",
    "write_model_folder",
]
