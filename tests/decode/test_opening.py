"""Check that every command opens and hashes each model only once."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mt.decode.translator
from mt.artifacts import ModelFolder, find_model
from mt.cli import build_app
from mt.decode.translator import Translator
from mt.runtime.workers import Workers


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which folders are hashed, and which are opened."""
    calls: list[str] = []
    verify, load_model = ModelFolder.verify, mt.decode.translator.load_model

    def counted_verify(self: ModelFolder, **options: Any) -> Any:
        calls.append(f"hashed {self.path}")
        return verify(self, **options)

    def counted_load(path: Path, *args: Any) -> Any:
        calls.append(f"opened {find_model(path)}")
        return load_model(path, *args)

    monkeypatch.setattr(ModelFolder, "verify", counted_verify)
    monkeypatch.setattr("mt.decode.translator.load_model", counted_load)
    return calls


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record how many processes and threads each opened model uses."""
    found: list[tuple[int, int]] = []
    load = Translator.load.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Translator], *args: Any, **options: Any) -> Translator:
        translator: Translator = load(cls, *args, **options)
        found.append((translator.workers.count, translator.workers.threads))
        return translator

    monkeypatch.setattr(Translator, "load", classmethod(counted))
    return found


def run(*arguments: object) -> None:
    result = CliRunner().invoke(build_app(), [str(each) for each in arguments])
    assert result.exception is None, result.exception


def expected(*folders: Path) -> list[str]:
    return sorted(
        f"{what} {find_model(folder)}" for folder in folders for what in ("hashed", "opened")
    )


def test_translations_scores_and_alignments_need_one_opening(
    trained_run: Path, sample: Path, tmp_path: Path, opened: list[str]
) -> None:
    outputs = ("-o", tmp_path / "out.jsonl", "--alignment", tmp_path / "links")
    run("translate", trained_run, sample / "test.de", "--format", "jsonl", *outputs)
    assert sorted(opened) == expected(trained_run)
    assert '"token_scores": [' in (tmp_path / "out.jsonl").read_text()
    assert (tmp_path / "links").read_text().count("\n") == 20


@pytest.mark.parametrize("command", ["compare", "report"])
def test_two_models_are_opened_once_each_and_all_processes_work_for_both(
    command: str,
    trained_run: Path,
    sample: Path,
    tmp_path: Path,
    opened: list[str],
    pools: list[tuple[int, int]],
) -> None:
    models = [trained_run / f"checkpoints/step_{step:08d}" for step in (8, 12)]
    files = ("--src", sample / "test.de", "--ref", sample / "test.en")
    output = ("-o", tmp_path / "report.html") if command == "report" else ()
    run(command, *models, *files, *output, "--threads", 2)
    assert sorted(opened) == expected(*models)
    assert pools == [(2, 2), (2, 2)]


def test_processes_of_one_opened_model_stay_for_all_that_it_does(trained_run: Path) -> None:
    lines = ["Der Hund schläft.", "Die Frau liest ein Buch.", "Das Haus ist alt."] * 3
    options = {"threads": 2, "workers": 2, "batch_size": 2}
    with Translator.load(trained_run, **options) as translator:  # type: ignore[arg-type]
        found = [best for best, *_ in translator.translate_stream(lines)]
        pool = translator.workers._pool
        pids = {worker.child.pid for worker in pool}
        texts = [each.text for each in found]
        many = (
            translator.align(lines, found),
            list(translator.likelihood(zip(lines, texts, strict=True))),
        )
        assert {worker.child.pid for worker in pool} == pids
    alone = Translator.load(trained_run, threads=1)
    assert alone.translate(lines) == texts
    assert alone.align(lines, found) == many[0]
    for one, other in zip(alone.likelihood(zip(lines, texts, strict=True)), many[1], strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert isinstance(alone.workers, Workers)
