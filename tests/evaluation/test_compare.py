"""Test comparisons and their verdicts, with text files and with models."""

import json
import re
from pathlib import Path

import pytest

from mt.errors import ConfigError, DataError
from mt.evaluation.compare import compare, verdict
from tests.conftest import run_mt
from tests.evaluation.texts import noisy, sample_text


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, str]:
    """Write a reference, and translations that differ in quality."""
    ref = sample_text()
    good, bad = noisy(ref), noisy(noisy(ref), seed=9)
    lines = {
        "ref": ref,
        "good": good,
        "bad": bad,
        "near": [*good[:1], ref[1], *good[2:]],
        "short": good[:5],
    }
    return {name: write(tmp_path / name, text) for name, text in lines.items()}


def test_a_better_system_is_found_better_and_the_verdict_says_what_to_do(
    texts: dict[str, str],
) -> None:
    (pair,) = compare([texts["bad"], texts["good"]], references=[texts["ref"]])
    assert all(c.is_significant and c.is_better for c in pair.comparisons)
    assert [(c.score.name, c.kind) for c in pair.comparisons] == [
        (name, kind) for name in ("bleu", "chrf", "ter") for kind in ("bs", "ar")
    ]
    assert verdict(pair).startswith(f"{texts['good']} is better than {texts['bad']} by BLEU +")
    assert verdict(pair).endswith(f"Take {texts['good']}.")
    (reverse,) = compare([texts["good"], texts["bad"]], references=[texts["ref"]])
    assert verdict(reverse).endswith(f"Take {texts['good']}.")
    assert (reverse.wins, reverse.losses, reverse.ties) == (pair.losses, pair.wins, pair.ties)
    assert pair.wins + pair.losses + pair.ties == pair.num_sentences == 100
    assert pair.wins > pair.losses
    gains = [change.gain for change in pair.changes]
    assert gains == sorted(gains, reverse=True)


def test_a_difference_of_one_line_may_be_chance(texts: dict[str, str]) -> None:
    (pair,) = compare([texts["good"], texts["near"]], references=[texts["ref"]])
    assert pair.num_identical == 99
    assert (pair.wins, pair.losses) == (1, 0)
    assert verdict(pair).startswith("No difference found")
    assert pair.changes[0].line == 2


def test_a_system_compared_with_itself_shows_no_difference(texts: dict[str, str]) -> None:
    (pair,) = compare([texts["good"], texts["good"]], references=[texts["ref"]])
    assert pair.system == f"{texts['good']} (2)"
    assert verdict(pair).startswith("No difference: ")
    assert pair.changes == []


def test_three_systems_give_two_comparisons_with_the_first(texts: dict[str, str]) -> None:
    pairs = compare([texts[name] for name in ("bad", "good", "near")], references=[texts["ref"]])
    assert [(pair.baseline, pair.system) for pair in pairs] == [
        (texts["bad"], texts["good"]),
        (texts["bad"], texts["near"]),
    ]


@pytest.mark.parametrize(
    ("systems", "references", "error", "message"),
    [
        (["good"], ["ref"], ConfigError, "at least two systems"),
        (["good", "bad"], [], ConfigError, "exactly one --ref"),
        (["good", "short"], ["ref"], DataError, "5 translations but 100 references"),
    ],
)
def test_systems_that_cannot_be_compared_are_rejected(
    systems: list[str],
    references: list[str],
    error: type[Exception],
    message: str,
    texts: dict[str, str],
) -> None:
    with pytest.raises(error, match=message):
        compare([texts[name] for name in systems], references=[texts[name] for name in references])


def test_one_sentence_is_not_enough(tmp_path: Path) -> None:
    one = write(tmp_path / "one", ["a b c d"])
    with pytest.raises(DataError, match="needs at least two sentences"):
        compare([one, one], references=[one])


def test_the_command_compares_models_checkpoints_and_files(
    trained_run: Path, sample: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    hyp = write(tmp_path / "hyp", (sample / "test.en").read_text(encoding="utf-8").split("\n")[:-1])
    checkpoints = sorted((trained_run / "checkpoints").glob("step_*"))[:2]
    result = run_mt("compare", *checkpoints, hyp, "-m", "chrf", "--examples", 1)
    assert result.returncode == 0, result.stderr
    assert f"Take {hyp}." in result.stdout
    assert "Sentence by sentence (chrF): 20 better" in result.stdout
    assert re.search(r"^line \d+, \+\d+\.\d$", result.stdout, re.MULTILINE)
    as_json = json.loads(run_mt("compare", trained_run, trained_run, "-m", "chrf", "--json").stdout)
    assert as_json[0]["verdict"].startswith("No difference: ")
    assert as_json[0]["ties"] == 20
    mixed = run_mt("compare", trained_run, texts["good"])
    assert mixed.returncode == 2
    assert "100 translations but 20 references" in mixed.stderr
