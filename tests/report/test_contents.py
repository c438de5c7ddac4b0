"""Test the data that a report collects, and the command `mt report`."""

import json
import re
import shutil
from pathlib import Path

import pytest

from mt.errors import CheckpointError, DataError
from mt.evaluation import build_metrics, corpus_scores
from mt.evaluation.evaluate import Scoring
from mt.report.contents import report_data
from tests.conftest import run_mt

OPTIONS = {"threads": 1, "workers": 1}
FAST = Scoring(("chrf", "bleu"), resamples=50)


@pytest.fixture
def runs(trained_run: Path, tmp_path: Path) -> list[Path]:
    """Make two runs with different configurations and different best checkpoints."""
    paths = [tmp_path / "a/run", tmp_path / "b/run"]
    for path in paths:
        shutil.copytree(trained_run, path, symlinks=True)
        shutil.rmtree(path / "evaluations", ignore_errors=True)
    config = paths[1] / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace("warmup_steps: 5", "warmup_steps: 7"),
        encoding="utf-8",
    )
    best = paths[1] / "checkpoints/best"
    other = next(
        path.name
        for path in sorted((paths[1] / "checkpoints").glob("step_*"))
        if path.name != best.readlink().name
    )
    best.unlink()
    best.symlink_to(other)
    return paths


def test_two_runs_are_described_compared_and_told_apart(runs: list[Path]) -> None:
    data = report_data(runs, scoring=FAST, options=OPTIONS, num_maps=2)
    assert [run["name"] for run in data["runs"]] == ["run", "run (2)"]
    assert data["config_differences"] == [{"key": "optim.warmup_steps", "values": ["5", "7"]}]
    assert data["runs"][0]["curves"]["valid"]["step"] == [6, 12]
    assert data["runs"][0]["best_step"] != data["runs"][1]["best_step"]
    (test,) = data["tests"]
    assert (test["name"], test["num_sentences"]) == ("tiny test", 20)
    assert [system["name"] for system in test["systems"]] == ["run", "run (2)"]
    sentences = test["sentences"]
    for number, system in enumerate(test["systems"]):
        expected = corpus_scores(
            sentences["hyps"][number], [sentences["ref"]], build_metrics(["chrf"])
        )["chrf"]
        assert system["scores"][0]["name"] == "chrF"
        assert system["scores"][0]["value"] == pytest.approx(expected.value)
        low, high = system["scores"][0]["interval"]
        assert low < system["scores"][0]["value"] < high
        for entry in system["diagnosis"]:
            assert entry["count"] == sum(
                entry["flag"] in flags for flags in sentences["flags"][number]
            )
    [comparison] = test["comparisons"]
    assert (comparison["a"], comparison["b"], [row["metric"] for row in comparison["metrics"]]) == (
        0,
        1,
        ["chrF", "BLEU"],
    )
    assert [len(row["p_values"]) for row in comparison["metrics"]] == [2, 2]
    for bucket in test["buckets"]:
        assert sum(bucket["counts"]) == 20
        assert len(bucket["labels"]) == len(bucket["counts"]) == len(bucket["values"][0])
    assert [bucket["title"][:6] for bucket in test["buckets"]] == ["Source", "How of"]
    assert len(test["attention"]) == 4
    for entry in test["attention"]:
        layers, heads, queries, keys = entry["cross"]["shape"]
        assert (layers, heads, queries, keys) == (
            1,
            2,
            len(entry["written_tokens"]),
            len(entry["src_tokens"]),
        )
    json.dumps(data, allow_nan=False)


def test_a_run_without_checkpoint_text_or_validation_still_has_a_report(
    runs: list[Path], sample: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(runs[0] / "checkpoints")
    (runs[0] / "metrics.jsonl").write_text('{"kind": "tra', encoding="utf-8")
    data = report_data(runs[:1], scoring=FAST, options=OPTIONS)
    assert data["tests"] == []
    assert data["runs"][0]["curves"]["train"]["step"] == []
    assert "no checkpoint yet" in caplog.text
    config = runs[1] / "config.yaml"
    config.write_text(
        config.read_text(encoding="utf-8").replace(str(sample), "/nowhere"), encoding="utf-8"
    )
    assert report_data(runs[1:], scoring=FAST, options=OPTIONS)["tests"] == []
    assert "the report has no test sets" in caplog.text


def test_a_missing_run_and_a_mismatched_test_set_are_errors(
    runs: list[Path], sample: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder"):
        report_data([tmp_path], scoring=FAST)
    with pytest.raises(DataError, match="must match line by line"):
        report_data(runs[:1], [str(sample / "test.de")], [str(sample / "train.en")], FAST)


def test_the_command_writes_one_file_that_holds_every_sentence(
    runs: list[Path], sample: Path, tmp_path: Path
) -> None:
    ref = (sample / "test.en").read_text(encoding="utf-8").split("\n")[:-1]
    ref[3] = "</script><script>alert(1)</script>"
    (tmp_path / "ref").write_text("".join(f"{line}\n" for line in ref), encoding="utf-8")
    files = ("--src", sample / "test.de", "--ref", tmp_path / "ref")
    result = run_mt("report", *runs, "-o", tmp_path / "r.html", *files, "-m", "chrf", "--maps", 1)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    assert json.loads(found[1])["tests"][0]["sentences"]["ref"] == ref
    assert not re.search(r"""(src|href)=["']?https?:""", page)
