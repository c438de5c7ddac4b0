"""COMET scores from an external command, because COMET's dependencies conflict with ours."""

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
    """A command line that runs COMET.

    In it, `{src}`, `{hyp}` and `{ref}` are replaced by the paths of text files. The last line of
    the command's output must end with the system score.
    """

    line: str  # for example: comet-score --quiet --only_system -s {src} -t {hyp} -r {ref}

    def __post_init__(self) -> None:
        missing = [name for name in ("{src}", "{hyp}", "{ref}") if name not in self.line]
        if missing:
            raise ConfigError(f"the COMET command {self.line!r} lacks {', '.join(missing)}")

    def score(
        self, src: Sequence[str], hyps: Sequence[str], ref: Sequence[str]
    ) -> dict[str, Score]:
        """Run the command and return {"comet": score}.

        Raises `MTError` if the command fails or its output does not end in a number.
        """
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: f"{folder}/{name}" for name in ("src", "hyp", "ref")}
            for path, lines in zip(paths.values(), (src, hyps, ref), strict=True):
                Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return {"comet": self._run([word.format(**paths) for word in shlex.split(self.line)])}

    def _run(self, words: list[str]) -> Score:
        try:
            result = subprocess.run(words, capture_output=True, text=True, check=False)
        except OSError as error:
            raise MTError(f"COMET: cannot run {words[0]}: {error.strerror}") from error
        number = re.search(r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)\s*\Z", result.stdout)
        if result.returncode or number is None:
            output = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()
            raise MTError(
                f"COMET: no score from {shlex.join(words)} "
                f"(exit code {result.returncode}); it ended with: {output[-1]}"
            )
        return Score("comet", float(number[1]), f"command:{self.line}")
