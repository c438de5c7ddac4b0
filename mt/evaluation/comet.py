"""COMET by a command of its own environment: its packages do not go together with ours."""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mt.errors import ConfigError, MTError
from mt.evaluation.metrics import Score


@dataclass(frozen=True)
class CometCommand:
    """A command line with `{src}`, `{hyp}` and `{ref}` for three text files, whose last line of
    output ends in the system's score.
    """

    line: str  # such as: comet-score --quiet --only_system -s {src} -t {hyp} -r {ref}

    def __post_init__(self) -> None:
        missing = [name for name in ("{src}", "{hyp}", "{ref}") if name not in self.line]
        if missing:
            raise ConfigError(f"the COMET command {self.line!r} has no {', '.join(missing)}")

    def score(
        self, src: Sequence[str], hyps: Sequence[str], ref: Sequence[str]
    ) -> dict[str, Score]:
        """{"comet": its score}. Raises `MTError` where the command fails or prints no number."""
        with tempfile.TemporaryDirectory() as name:
            files = {"src": src, "hyp": hyps, "ref": ref}
            for key, lines in files.items():
                (Path(name) / key).write_text(
                    "".join(f"{line}\n" for line in lines), encoding="utf-8"
                )
            words = [
                word.format(**{key: f"{name}/{key}" for key in files})
                for word in shlex.split(self.line)
            ]
            try:
                result = subprocess.run(words, capture_output=True, text=True, check=False)
            except OSError as error:
                raise MTError(f"COMET: {words[0]} cannot be run: {error.strerror}") from error
        number = re.search(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)\s*\Z", result.stdout)
        if result.returncode or number is None:
            said = (result.stderr.strip() or result.stdout.strip() or "nothing").splitlines()[-1]
            raise MTError(f"COMET: {shlex.join(words)} ended with code {result.returncode}: {said}")
        return {"comet": Score("comet", float(number[1]), f"command:{self.line}")}
