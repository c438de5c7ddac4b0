"""Run folders and model folders: every file name and file format on disk is defined here.

Folders are written completely or not at all, and their files are verified by size and SHA-256
before use. Nothing is ever unpickled.
"""

from mt.artifacts.checkpoints import CheckpointManager, TrainingState, run_checkpoints
from mt.artifacts.manifest import MANIFEST, read_json, seal, verify
from mt.artifacts.model_folder import ModelFolder, average_checkpoints
from mt.artifacts.run_folder import RunFolder, find_model
