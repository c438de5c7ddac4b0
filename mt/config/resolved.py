"""A run with everything decided: made once, at its start, by `mt.runs.resolve`; nothing resolves
again.
"""

from dataclasses import dataclass
from pathlib import Path

from mt.config.schema import Config


@dataclass(frozen=True)
class ResolvedRun:
    """What a run trains with.

    `config` has numbers and names in place of every `auto`: precision, threads, micro-batches,
    limits of the search, the sizes and the tokenizer of the model that it begins with. `asked` is
    the same before these were found out, as the run folder keeps it.
    """

    folder: Path
    config: Config
    asked: Config
    checkpoint: Path | None = None  # to continue from

    @property
    def is_new(self) -> bool:
        """Whether the run begins here."""
        return self.checkpoint is None
