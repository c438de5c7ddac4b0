"""Test how evaluations are saved, reused and reproduced, and the command `mt evaluate`."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mt.artifacts import find_model
from mt.config import DataConfig
from mt.errors import CheckpointError, ConfigError, DataError
from mt.evaluation.evaluate import (
    Scoring,
    cached_translations,
    evaluate_model,
    read_tests,
    translation_file_names,
)
from mt.evaluation.scorecard import read_scorecard
from tests.conftest import run_mt

FAST = {"threads": 1, "workers": 1, "beam_size": 2}


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """Copy the trained run, without its evaluations."""
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/evaluations", ignore_errors=True)
    return tmp_path / "run"


def test_an_evaluation_keeps_translations_and_score_card_in_the_run(run: Path) -> None:
    found = evaluate_model(run, Scoring(resamples=50), options=FAST)
    folder = run / "evaluations" / found.folder.path.name
    card = read_scorecard(folder / "scorecard.json")
    assert (folder / "tiny_test.hyp").read_text(encoding="utf-8").split("\n")[:-1] == found.results[
        0
    ].hyps
    assert card["results"][0]["scores"] == [
        score.as_dict() for score in found.results[0].scores.values()
    ]
    assert card["decode"]["beam_size"] == 2
    assert card["seed"] == 1
    assert card["precision"] == "fp32"
    assert {"mt", "python", "torch", "sacrebleu", "sentencepiece"} <= card["versions"].keys()
    assert card["hardware"]["cores"] >= 1
    assert card["training"]["step"] == int(found.folder.path.name.removeprefix("step_"))


def test_a_model_outside_of_a_run_keeps_its_evaluations_beside_it(
    run: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree((run / "checkpoints/best").resolve(), model)
    before = sorted(path.name for path in model.rglob("*"))
    evaluate_model(model, Scoring(("chrf",), resamples=0), options=FAST)
    assert (tmp_path / "model.evaluations/scorecard.json").exists()
    assert (
        sorted(path.name for path in model.rglob("*")) == before
    )  # a model folder must not change


def test_cached_translations_are_reused_only_for_the_same_weights_search_and_text(
    run: Path, sample: Path
) -> None:
    found = evaluate_model(run, Scoring(("chrf",), resamples=0), options=FAST)
    kept = run / "evaluations" / found.folder.path.name / "tiny_test.hyp"
    marked = ["kept"] * len(found.results[0].hyps)
    kept.write_text("".join(f"{line}\n" for line in marked), encoding="utf-8")
    tests = read_tests(DataConfig(), [str(sample / "test.de")], [str(sample / "test.en")])
    model = find_model(run)
    assert cached_translations(model, tests, FAST) == [marked]
    assert cached_translations(model, tests, {**FAST, "batch_size": 3}) == [marked]
    assert cached_translations(model, tests, {**FAST, "beam_size": 1}) == [None]
    shorter = [type(tests[0])("shorter", tests[0].src[:5], [tests[0].refs[0][:5]])]
    assert cached_translations(model, shorter, FAST) == [None]
    other = next(
        path for path in (run / "checkpoints").glob("step_*") if path.name != found.folder.path.name
    )
    shutil.copytree(kept.parent, run / "evaluations" / other.name)
    assert cached_translations(find_model(other), tests, FAST) == [None]


def test_there_can_be_several_test_sets_with_several_references(sample: Path) -> None:
    src, ref = str(sample / "test.de"), str(sample / "test.en")
    first, second = read_tests(DataConfig(), [src, src], [ref, f"{ref},{ref}"])
    assert (len(first.refs), len(second.refs)) == (1, 2)
    names = list(translation_file_names(["a/test.de", "b/test.de", "...", "x" * 300]))
    assert names == ["test.de.hyp", "test.de-2.hyp", "test.hyp", f"{'x' * 100}.hyp"]


@pytest.mark.parametrize(
    ("sources", "references", "error", "message"),
    [
        ([], [], ConfigError, "no test set"),
        (["a"], [], ConfigError, "1 --src but 0 --ref"),
        (["test.de"], ["no-such-file"], DataError, "No such file"),
        (["test.de"], ["train.en"], DataError, "parallel files must match"),
    ],
)
def test_missing_or_mismatched_test_files_are_errors(
    sample: Path, sources: list[str], references: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_tests(
            DataConfig(),
            [str(sample / name) for name in sources],
            [str(sample / name) for name in references],
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "not a scorecard"), ("{", "cannot be read"), ('{"format": 99}', "not a scorecard")],
)
def test_a_file_that_is_not_a_scorecard_is_rejected(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "card.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_scorecard(tmp_path / "card.json")


def test_a_card_is_reproduced_by_training_again(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert run_mt("train", config).returncode == 0
    assert run_mt("evaluate", tmp_path / "run").returncode == 0
    (card,) = (tmp_path / "run/evaluations").glob("*/scorecard.json")
    again = run_mt("reproduce", card)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": the same") == 3
    assert "changed" not in again.stdout
    changed = json.loads(card.read_text(encoding="utf-8"))
    changed["results"][0]["scores"][0]["value"] += 1.0
    changed["versions"]["torch"] = "1.0"
    card.write_text(json.dumps(changed), encoding="utf-8")
    off = run_mt("reproduce", card, "--run-dir", tmp_path / "run-reproduced")
    assert off.returncode == 1
    assert "not the same (-1.00)" in off.stdout
    assert "changed: torch: 1.0 on the card" in off.stdout
    changed["results"][0]["text"] = "0"
    card.write_text(json.dumps(changed), encoding="utf-8")
    other = run_mt("reproduce", card)
    assert other.returncode == 2
    assert "changed since the card was written: the test set tiny test" in other.stderr


def test_the_comet_score_is_what_the_command_prints_and_failures_are_reported(
    run: Path, tmp_path: Path
) -> None:
    fake = tmp_path / "comet.py"
    fake.write_text(
        "import sys\n"
        "texts = [open(name, encoding='utf-8').read().splitlines() for name in sys.argv[1:]]\n"
        "assert [len(lines) for lines in texts] == [20] * 3\n"
        "print('model loaded')\nprint('score: 0.1234')\n",
        encoding="utf-8",
    )
    command = f"{sys.executable} {fake} {{src}} {{hyp}} {{ref}}"
    result = run_mt("evaluate", run, "-m", "chrf", "--comet-command", command, "--json")
    assert result.returncode == 0, result.stderr
    assert [(score["name"], score["value"]) for score in json.loads(result.stdout)[0]["scores"]][
        1
    ] == ("comet", 0.1234)
    failed = run_mt(
        "evaluate",
        run,
        "-m",
        "chrf",
        "--comet-command",
        f"{sys.executable} -c raise_here {{src}}{{hyp}}{{ref}}",
    )
    assert failed.returncode == 1
    assert "COMET" in failed.stderr
    assert "NameError" in failed.stderr
    assert "Traceback" not in failed.stderr
    without = run_mt("evaluate", run, "--comet-command", "comet-score -s {src}")
    assert without.returncode == 2
    assert "lacks {hyp}, {ref}" in without.stderr
