"""Scores against the `sacrebleu` command, the reference that the field reports."""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mt.errors import DataError
from mt.metrics import Score, corpus_scores, is_better

ROOT = Path(__file__).resolve().parent.parent


def sample_lines() -> list[str]:
    return (ROOT / "data/sample/test.en").read_text(encoding="utf-8").split("\n")[:100]


def multi30k_lines() -> list[str]:
    for folder in (ROOT / "data/multi30k", ROOT.parent / "shared/data/multi30k"):
        for path in sorted(folder.glob("test*2016*.en*")):
            text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            return text.decode().split("\n")[:100]
    pytest.skip("no Multi30k test set in data/multi30k or ../shared/data/multi30k")


def noisy(lines: list[str]) -> list[str]:
    """Words dropped, swapped and replaced; one line left empty, one as it was."""
    rng, out = random.Random(3), []
    for line in lines:
        words = [word for word in line.split() if rng.random() > 0.1]
        if len(words) > 2 and rng.random() < 0.5:
            i = rng.randrange(len(words) - 1)
            words[i], words[i + 1] = words[i + 1], words[i]
        out.append(" ".join(word if rng.random() > 0.1 else "Straße" for word in words))
    return [lines[0], "", *out[2:]]


@pytest.mark.parametrize("lines", [sample_lines, multi30k_lines], ids=["sample", "multi30k"])
def test_values_and_signatures_are_those_of_the_sacrebleu_command(lines: Callable[[], list[str]], tmp_path: Path) -> None:
    refs = lines()
    hyps = noisy(refs)
    (tmp_path / "ref").write_text("\n".join(refs) + "\n", encoding="utf-8")
    (tmp_path / "hyp").write_text("\n".join(hyps) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "ref", "-i", "hyp", "-m", "bleu", "chrf", "ter", "--format", "json", "-w", "10"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    theirs = {score["name"].lower().rstrip("2"): score for score in json.loads(printed)}
    ours = corpus_scores(hyps, refs)
    assert list(ours) == ["bleu", "chrf", "ter"]
    assert 20 < ours["bleu"].value < 95
    for name, score in ours.items():
        assert score.value == pytest.approx(theirs[name]["score"], abs=1e-8)
        assert score.signature == theirs[name]["signature"]


def test_a_perfect_translation_has_perfect_scores() -> None:
    refs = sample_lines()
    assert {name: round(score.value, 6) for name, score in corpus_scores(refs, refs).items()} == {"bleu": 100, "chrf": 100, "ter": 0}


def test_only_the_metrics_asked_for_are_computed_in_their_order() -> None:
    assert list(corpus_scores(["a b c d"], ["a b c d"], ["chrf", "bleu"])) == ["chrf", "bleu"]


@pytest.mark.parametrize(("hyps", "refs", "message"), [
    (["a"], ["a", "b"], "1 translations but 2 references"),
    (["a"] * 1200, ["a"], "1,200 translations but 1 references"),
    ([], [], "no lines to score"),
])
def test_lines_that_do_not_match_are_an_error_that_says_so(hyps: list[str], refs: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        corpus_scores(hyps, refs)


@pytest.mark.parametrize(("metric", "value", "best", "expected"), [
    ("bleu", 0.0, None, True), ("loss", 9.0, None, True),
    ("bleu", 30.1, 30.0, True), ("bleu", 30.0, 30.0, False), ("bleu", 29.9, 30.0, False),
    ("chrf", 50.1, 50.0, True), ("chrf", 49.9, 50.0, False),
    ("loss", 1.9, 2.0, True), ("loss", 2.0, 2.0, False), ("loss", 2.1, 2.0, False),
    ("ter", 39.9, 40.0, True), ("ter", 40.1, 40.0, False),
    ("loss", float("nan"), 2.0, False), ("bleu", float("nan"), 2.0, False),
])
def test_better_is_higher_for_bleu_and_chrf_lower_for_loss_and_ter(metric: str, value: float, best: float | None, expected: bool) -> None:
    assert is_better(metric, value, best) is expected


def test_a_score_prints_its_title_and_two_decimals() -> None:
    printed = [str(Score(name, 12.345678, "")) for name in ("bleu", "chrf", "ter", "loss")]
    assert printed == ["BLEU 12.35", "chrF 12.35", "TER 12.35", "loss 12.35"]
    assert Score("bleu", 1.0, "sig").as_dict() == {"name": "bleu", "value": 1.0, "signature": "sig"}
