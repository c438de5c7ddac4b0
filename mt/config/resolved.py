"""The final settings of a run, which `mt.runs.resolve` determines once when the run starts."""

from dataclasses import dataclass
from pathlib import Path

from mt.config.schema import Config


@dataclass(frozen=True)
class ResolvedRun:
    """The folder and the final settings of a run.

    In `config`, every `auto` (precision, threads, micro-batch size, search limits) has been
    replaced by a value. If the run starts from an existing model, `config` has the sizes and the
    tokenizer of that model.
    """

    folder: Path
    config: Config
    checkpoint: Path | None = None  # to resume from

    @property
    def is_new(self) -> bool:
        """Whether the run starts from scratch instead of resuming from a checkpoint."""
        return self.checkpoint is None
