"""Run folders and model folders. This package defines all file names and file formats on disk.

Folders are written completely or not at all, and the size and SHA-256 of their files are verified
before use. Nothing is ever unpickled.
"""

from mt.artifacts.checkpoints import CheckpointManager, TrainingState, run_checkpoints
from mt.artifacts.manifest import MANIFEST, read_json, seal, verify
from mt.artifacts.model_folder import ModelFolder, average_checkpoints
from mt.artifacts.run_folder import RunFolder, find_model
