"""Provide texts to score, a reproducible way to make them worse, and the `sacrebleu` command."""

import gzip
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, corpus


@dataclass(frozen=True)
class Corpus:
    """A reference text, and the `sacrebleu` options for its language."""

    name: str
    read: Callable[[], list[str]]
    lang: str = "en"
    options: tuple[str, ...] = ()


def sample_text() -> list[str]:
    return (ROOT / "data/sample/test.en").read_text(encoding="utf-8").split("\n")[:100]


def multi30k(language: str = "en") -> list[str]:
    packed = (corpus("multi30k") / f"test_2016_flickr.{language}.gz").read_bytes()
    return gzip.decompress(packed).decode().split("\n")[:-1]


def enja() -> list[str]:
    folder = corpus("enja")
    if importlib.util.find_spec("MeCab") is None:
        pytest.skip("MeCab is missing; pip install 'mt-forge[ja]'")
    text = gzip.decompress((folder / "dev.ja.gz").read_bytes()).decode()
    return [line.replace(" ", "") for line in text.split("\n")[:-1]]


CORPORA = [
    Corpus("sample", sample_text),
    Corpus("multi30k", multi30k),
    Corpus("enja", enja, "ja", ("--tokenize", "ja-mecab")),
]


def noisy(lines: Sequence[str], seed: int = 3) -> list[str]:
    """Drop, swap and replace some words, or characters if the text has no spaces.

    The first line stays unchanged, and the second line becomes empty.
    """
    rng, out = random.Random(seed), []
    for line in lines:
        space = " " if " " in line else ""
        words = [word for word in (line.split() if space else line) if rng.random() > 0.1]
        if len(words) > 2 and rng.random() < 0.5:
            i = rng.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        out.append(
            space.join(
                word if rng.random() > 0.1 else "Straße" if space else "ー" for word in words
            )
        )
    return [lines[0], "", *out[2:]]


def sacrebleu(
    folder: Path, refs: Sequence[Sequence[str]], hyps: Sequence[Sequence[str]], *options: str
) -> Any:
    """Run the `sacrebleu` command, and return the JSON it prints. Scores have ten decimals."""
    names = {"ref": refs, "hyp": hyps}
    files = {
        kind: [f"{kind}{number}" for number in range(len(texts))] for kind, texts in names.items()
    }
    for kind, texts in names.items():
        for file, lines in zip(files[kind], texts, strict=True):
            (folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    # By itself, the command cannot write the float32 numbers from --paired-bs as JSON.
    main = "import functools, json; json.dumps = functools.partial(json.dumps, default=float)\n"
    main += "from sacrebleu.sacrebleu import main; main()"
    command = [
        sys.executable,
        "-c",
        main,
        *files["ref"],
        "-i",
        *files["hyp"],
        *options,
        "--format",
        "json",
        "-w",
        "10",
    ]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)
