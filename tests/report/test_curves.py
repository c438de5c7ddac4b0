"""Test that curves are read from metrics files in every state in which a run can leave them."""

import json
from pathlib import Path

from mt.report.curves import MAX_POINTS, read_curves


def write(folder: Path, *lines: str) -> Path:
    (folder / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def train(step: int, **values: object) -> str:
    return json.dumps(
        {
            "kind": "train",
            "step": step,
            "loss": 2.5,
            "lr": 1e-3,
            "tokens_per_second": 1000.0,
            **values,
        }
    )


def test_values_are_listed_with_their_steps(tmp_path: Path) -> None:
    valid = json.dumps(
        {"kind": "valid", "step": 20, "loss": 1.5, "bleu": 30.0, "chrf": 50.0, "improved": True}
    )
    curves = read_curves(write(tmp_path, train(10), train(20, loss=2.0), valid, ""))
    assert curves == {
        "train": {
            "step": [10, 20],
            "loss": [2.5, 2.0],
            "lr": [1e-3, 1e-3],
            "tokens_per_second": [1000.0, 1000.0],
        },
        "valid": {"step": [20], "loss": [1.5], "bleu": [30.0], "chrf": [50.0]},
    }


def test_incomplete_lines_other_lines_and_numbers_that_are_not_finite_are_tolerated(
    tmp_path: Path,
) -> None:
    curves = read_curves(
        write(
            tmp_path,
            train(1),
            "[1]",
            '{"kind": "other", "step": 1}',
            train(2, loss=float("nan")),
            train(3)[:-20],
        )
    )
    assert curves["train"]["step"] == [1, 2]
    assert curves["train"]["loss"] == [2.5, None]
    assert curves["valid"]["step"] == []


def test_a_run_without_numbers_has_empty_curves(tmp_path: Path) -> None:
    assert read_curves(tmp_path)["train"] == {
        "step": [],
        "loss": [],
        "lr": [],
        "tokens_per_second": [],
    }


def test_a_long_run_is_thinned_and_its_last_point_kept(tmp_path: Path) -> None:
    steps = read_curves(write(tmp_path, *(train(step) for step in range(1, 3 * MAX_POINTS))))[
        "train"
    ]["step"]
    assert len(steps) <= MAX_POINTS
    assert steps[-1] == 3 * MAX_POINTS - 1
    assert steps == sorted(steps)  # type: ignore[type-var]
