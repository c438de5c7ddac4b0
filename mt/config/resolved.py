"""The final settings of a run, which `mt.runs.resolve` determines once at its start."""

from dataclasses import dataclass
from pathlib import Path

from mt.config.schema import Config


@dataclass(frozen=True)
class ResolvedRun:
    """The folder and the final settings of a run.

    In `config` every `auto` has been replaced by a value (precision, threads, micro-batch size,
    search limits), and the sizes and the tokenizer are those of the initial model, if any.
    """

    folder: Path
    config: Config
    checkpoint: Path | None = None  # the one to resume from

    @property
    def is_new(self) -> bool:
        """Whether the run starts from scratch instead of resuming from a checkpoint."""
        return self.checkpoint is None
