"""Run folders and model folders: every file name and format on disk is said here, and only here.

They are written whole or not at all, verified by size and SHA-256 before use, and never unpickled.
"""

from mt.artifacts.checkpoints import CheckpointManager, TrainingState, run_checkpoints
from mt.artifacts.manifest import MANIFEST, read_json, seal, verify
from mt.artifacts.model_folder import ModelFolder, average_checkpoints
from mt.artifacts.run_folder import RunFolder, find_model
