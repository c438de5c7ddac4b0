"""The training loop: a run that is killed or stopped resumes to the same weights, and updates that
are not finite are skipped.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mt.artifacts import CheckpointManager, ModelFolder
from mt.config import Config, ResolvedRun, load_config
from mt.data.batch import AnyBatch, Batch, collate
from mt.data.order import Update
from mt.data.prepare import prepare
from mt.errors import DivergedError
from mt.log import MetricLogger
from mt.runtime.device import Compute
from mt.runtime.world import ALONE
from mt.train.cross_entropy import Loss
from mt.train.gradients import PendingStats
from mt.train.progress import TrainProgress
from mt.train.stopping import SignalStop
from mt.train.trainer import Trainer
from mt.train.updates import seed_draws
from mt.train.validation import sample_sizes
from tests.conftest import ROOT, run_mt

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture
def make_trainer(small_yaml: Callable[..., Path], tmp_path: Path) -> Callable[..., Trainer]:
    """Return a function that builds a trainer from the small configuration and overrides."""

    def make(*overrides: str) -> Trainer:
        config: Config = load_config(small_yaml(tmp_path), overrides)
        manager = CheckpointManager(tmp_path, 2, 1, "bleu")
        return Trainer(ResolvedRun(tmp_path, config), prepare(config), CPU, manager)

    return make


def test_ranks_share_signals_before_they_wait_for_the_gpu(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, calls = make_trainer("train.max_steps=3"), []
    share, read = SignalStop.share_signal, PendingStats.read
    monkeypatch.setattr(
        SignalStop, "share_signal", lambda stop: calls.append("share") or share(stop)
    )
    monkeypatch.setattr(PendingStats, "read", lambda stats, *_: calls.append("read") or read(stats))
    trainer.train()
    assert calls == ["share", "read"] * 3


def start(config: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    """Start `mt train` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "mt", "train", str(config), *overrides],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )


def wait_for(path: Path, process: "subprocess.Popen[bytes]", seconds: float = 60) -> None:
    """Wait until `path` exists; fail if the process ends before that."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was not written"
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)


def final_files(run: Path, step: int) -> dict[str, bytes]:
    """Return the bytes of the weights and the optimizer state in a checkpoint."""
    folder = run / f"checkpoints/step_{step:08d}"
    names = ("model.safetensors", "training/weights.safetensors", "training/optimizer.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def test_deterministic_may_be_changed_when_a_run_resumes(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("straight", "changed")]
    for folder in folders:
        folder.mkdir()
        result = run_mt("train", small_yaml(folder), "train.max_steps=4")
        assert result.returncode == 0, result.stderr
    assert run_mt("train", small_yaml(folders[0]), "train.max_steps=8").returncode == 0
    options = ("train.max_steps=8", "train.deterministic=true")
    result = run_mt("train", small_yaml(folders[1]), *options)
    assert "changed since the last start: train.deterministic: False -> True" in result.stderr
    straight, changed = (final_files(folder / "run", 8) for folder in folders)
    assert straight == changed  # on a CPU, `deterministic` changes nothing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_deterministic_run_on_a_gpu_resumes_to_the_same_bytes(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in ("straight", "stopped")]
    options = ("device=cuda", "precision=bf16", "train.compile=false", "train.deterministic=true")
    for folder, stops in zip(folders, [(8,), (3, 8)], strict=True):
        folder.mkdir()
        for stop in stops:
            command = ["train", small_yaml(folder), *options, f"train.max_steps={stop}"]
            result = run_mt(*command, env=dict(os.environ))
            assert result.returncode == 0, result.stderr
            assert "bf16, deterministic" in result.stderr
    straight, stopped = (final_files(folder / "run", 8) for folder in folders)
    assert straight == stopped


def test_a_run_killed_at_random_updates_ends_with_the_same_bytes(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("train.max_steps=60", "train.save_every=3", "train.valid_every=20")
    straight, killed = (tmp_path / name for name in ("straight", "killed"))
    for folder in (straight, killed):
        folder.mkdir()
    assert run_mt("train", small_yaml(straight), *options).returncode == 0
    config, chance = small_yaml(killed), random.Random(1)
    for step in sorted(chance.sample(range(3, 50, 3), 2)):
        process = start(config, *options)
        wait_for(killed / f"run/checkpoints/step_{step:08d}", process)
        time.sleep(chance.random() * 0.05)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert run_mt("train", config, *options).returncode == 0
    assert final_files(killed / "run", 60) == final_files(straight / "run", 60)
    lines = [json.loads(line) for line in (killed / "run/metrics.jsonl").read_text().splitlines()]
    train_steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert train_steps == sorted(set(train_steps))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_after_a_signal_the_same_command_resumes_to_the_same_bytes(
    number: signal.Signals, code: int, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("train.max_steps=60", "train.save_every=25", "train.valid_every=30")
    straight, stopped = (tmp_path / name for name in ("straight", "stopped"))
    for folder in (straight, stopped):
        folder.mkdir()
    assert run_mt("train", small_yaml(straight), *options).returncode == 0
    config = small_yaml(stopped)
    process = start(config, *options)
    wait_for(stopped / "run/checkpoints/step_00000025", process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    status = json.loads((stopped / "run/status.json").read_text())
    assert status["exit_code"] == code
    assert f"{number.name}: stopped after update" in status["message"]
    assert run_mt("train", config, *options).returncode == 0
    assert final_files(stopped / "run", 60) == final_files(straight / "run", 60)


def test_a_validation_abandoned_by_a_signal_is_repeated_on_resume(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mt.errors import Interrupted

    trainer = make_trainer()
    validator = trainer.validator
    assert validator is not None

    def interrupted(model: torch.nn.Module, pairs: object) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        raise AssertionError("the signal did not abandon the validation")

    monkeypatch.setattr(validator, "_nll", interrupted)
    with pytest.raises(Interrupted) as error:
        trainer.train()
    assert error.value.exit_code == 143
    assert trainer.step == 6
    again = make_trainer()
    again.load(trainer.checkpoints.newest() or pytest.fail("nothing was saved"))
    validated = []
    assert again.validator is not None
    real = again.validator.validate
    monkeypatch.setattr(
        again.validator,
        "validate",
        lambda model, step, shared: validated.append(step) or real(model, step, shared),
    )
    again.train()
    assert validated == [6, 12]


def test_resume_at_every_update_gives_the_same_weights(
    make_trainer: Callable[..., Trainer],
) -> None:
    straight = make_trainer()
    straight.checkpoints.keep_last = 6
    straight.progress = TrainProgress(straight.config.train, None, 0, straight.seconds, "fp32")
    updates = straight.loader.updates()
    weights = []
    for update in (next(updates) for _ in range(6)):
        straight.report(straight.train_step(update))
        straight.save()
        weights.append(clone(straight.weights()))
    updates.close()  # type: ignore[attr-defined]
    for step in range(1, 6):
        resumed = make_trainer("seed=1")
        resumed.load(straight.run.checkpoint(step))
        following = resumed.loader.updates()
        resumed.train_step(next(following))
        following.close()  # type: ignore[attr-defined]
        for name, parameter in resumed.model.named_parameters():
            assert torch.equal(parameter, weights[step][name])


def test_a_checkpoint_with_trained_key_biases_still_loads(
    make_trainer: Callable[..., Trainer],
) -> None:
    old = make_trainer()
    old.model.requires_grad_(True)
    old.progress = TrainProgress(old.config.train, None, 0, old.seconds, "fp32")
    updates = old.loader.updates()
    for _ in range(2):
        old.report(old.train_step(next(updates)))
    old.save()
    updates.close()  # type: ignore[attr-defined]
    folder = old.checkpoints.path(2)
    moments = load_file(folder / "training/optimizer.safetensors")
    biases = [name for name in old.weights() if name.endswith("k_proj.bias")]
    assert all(f"exp_avg.{name}" in moments and old.weights()[name].any() for name in biases)
    resumed = make_trainer()
    resumed.load(ModelFolder(folder))
    following = resumed.loader.updates()
    resumed.train_step(next(following)).read()
    following.close()  # type: ignore[attr-defined]
    for name, weight in resumed.weights().items():
        assert torch.equal(weight, old.weights()[name]) == (name in biases), name
    assert not any(name.endswith("k_proj.bias") for name in resumed.training_state().optimizer)


def clone(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies that later updates do not change."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_two_micro_batches_equal_one_big_batch_without_dropout(
    make_trainer: Callable[..., Trainer],
) -> None:
    plain = ("model.dropout=0.0", "model.attention_dropout=0.0", "optim.clip_norm=0")
    one, two = make_trainer(*plain), make_trainer(*plain)
    pairs = [(list(range(5, 5 + n)), list(range(9, 12 + n))) for n in (3, 7, 4, 9)]
    one.train_step(Update.from_batches([collate(pairs)]))
    two.train_step(Update.from_batches([collate(pairs[:1]), collate(pairs[1:])]))
    for (name, a), b in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_does_not_change_the_weights(
    bad: float, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer()
    updates = trainer.loader.updates()
    trainer.train_step(next(updates))
    before = clone(dict(trainer.model.named_parameters()))
    hook = trainer.model.decoder.layers[0].register_forward_hook(
        lambda module, args, out: out * bad
    )
    stats = trainer.train_step(next(updates))
    with pytest.raises(DivergedError, match="update 2"):
        stats.read()
    hook.remove()
    updates.close()  # type: ignore[attr-defined]
    assert all(
        torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters()
    )
    assert DivergedError.exit_code == 3


def test_random_numbers_depend_only_on_seed_update_and_micro_batch() -> None:
    def draw(*place: int) -> float:
        seed_draws(*place)
        return float(torch.rand(()))

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({draw(1, 2, 0), draw(1, 2, 1), draw(1, 3, 0), draw(2, 2, 0)}) == 4


def test_scores_of_training_equal_those_of_mt_evaluate(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    folder = trained_run / "valid/step_00000012"
    scores = json.loads((folder / "scores.json").read_text())
    for language in ("de", "en"):
        lines = (sample / f"valid.{language}").read_text(encoding="utf-8").split("\n")[:20:5]
        (tmp_path / f"first.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = trained_run / "checkpoints/step_00000012"
    files = ("--src", tmp_path / "first.de", "--ref", tmp_path / "first.en", "-o", tmp_path / "hyp")
    result = run_mt("evaluate", model, *files, "--beam-size", 1, "--json")
    printed = {score["name"]: score["value"] for score in json.loads(result.stdout)[0]["scores"]}
    assert (tmp_path / "hyp").read_text() == (folder / "hyp.txt").read_text()
    assert printed["bleu"] == scores["bleu"]
    assert printed["chrf"] == scores["chrf"]


def test_a_run_keeps_its_last_and_best_checkpoints_and_links_them(trained_run: Path) -> None:
    manager = CheckpointManager(trained_run, 2, 1, "bleu")
    best = manager.ranked()[0]
    assert set(manager.steps()) == {8, 12, best}
    assert (trained_run / "checkpoints/last").readlink() == Path("step_00000012")
    assert (trained_run / "checkpoints/best").readlink() == Path(f"step_{best:08d}")
    assert json.loads((trained_run / "status.json").read_text())["state"] == "done"
    assert {path.name for path in trained_run.iterdir()} >= {
        "config.yaml",
        "train.log",
        "metrics.jsonl",
        "status.json",
        "lock",
        "valid",
    }


def test_a_checkpoint_contains_the_lengths_of_the_training_data(trained_run: Path) -> None:
    folder = trained_run / "checkpoints/step_00000012"
    lengths = json.loads((folder / "provenance.json").read_text())["lengths"]
    decode = json.loads((folder / "generation.json").read_text())
    assert 10 < lengths["src"]["0.5"] <= lengths["src"]["0.99"] <= lengths["src"]["1"]
    assert decode["max_src_len"] == lengths["src"]["0.9999"]
    assert decode["max_sentences"] == lengths["sentences"]["0.99"] == 1


def test_a_second_process_is_refused_while_one_trains(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    process = start(config, "train.max_steps=100000", "train.max_epochs=100000")
    try:
        wait_for(tmp_path / "run/checkpoints/step_00000004", process)
        second = run_mt("train", config)
        assert second.returncode == 1
        assert "another process is using this folder" in second.stderr
    finally:
        process.kill()
        process.wait()


def test_patience_and_max_epochs_end_a_run(small_yaml: Callable[..., Path], tmp_path: Path) -> None:
    config = small_yaml(tmp_path)
    assert run_mt("train", config, "train.max_steps=null", "train.max_epochs=1").returncode == 0
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["message"] == "train.max_epochs: 1"
    shutil.rmtree(tmp_path / "run")
    patient = (
        "train.max_steps=400",
        "train.patience=2",
        "train.valid_every=1",
        "optim.lr=1e-9",
        "train.metric=loss",
    )
    assert run_mt("train", config, *patient).returncode == 0
    assert "train.patience: 2" in json.loads((tmp_path / "run/status.json").read_text())["message"]


def test_a_validation_batch_that_does_not_fit_into_memory_is_split(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mt.train import validation

    trainer = make_trainer()
    assert trainer.validator is not None
    expected = trainer.validator.loss(trainer.model, ALONE.map_sharded)
    real, sizes = validation.loss_sums, []

    def tight(model: torch.nn.Module, batch: Batch, smoothing: float) -> Loss:
        sizes.append(len(batch.src))
        if len(batch.src) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, smoothing)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "loss_sums", tight)
    loss = trainer.validator.loss(trainer.model, ALONE.map_sharded)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert max(sizes) > 2


@pytest.mark.parametrize("call", [1, 2])
def test_a_signal_while_averaged_weights_are_swapped_leaves_the_weights_alone(
    call: int, make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mt.train import updates as trainer_module

    trainer = make_trainer()
    updates = trainer.loader.updates()
    trainer.train_step(next(updates)).read()
    updates.close()  # type: ignore[attr-defined]
    before, real, calls = (
        clone(dict(trainer.model.named_parameters())),
        trainer_module.load_weights,
        [],
    )
    trainer.progress = TrainProgress(
        trainer.config.train,
        MetricLogger(trainer.run.metrics_path, trainer.run.tensorboard, 0),
        1,
        trainer.seconds,
        "fp32",
    )

    def interrupted(*args: object) -> None:
        calls.append(args)
        if len(calls) == call:
            trainer.stop._handle(signal.SIGTERM, None)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer_module, "load_weights", interrupted)
    with trainer.stop.installed():
        trainer.validate()
    trainer.progress.close()
    assert len(calls) == 2
    assert all(
        torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters()
    )


def break_update(trainer: Trainer, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of one update NaN."""
    real = trainer.forward

    def forward(batch: AnyBatch) -> Loss:
        loss = real(batch)
        return (
            loss._replace(smoothed=loss.smoothed * float("nan")) if trainer.step == step else loss
        )

    monkeypatch.setattr(trainer, "forward", forward)


def test_bad_updates_are_skipped_and_written_up_to_the_maximum(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = make_trainer("train.max_steps=5", "train.max_bad_updates=1", "train.ema_decay=0")
    break_update(trainer, 3, monkeypatch)
    assert trainer.train() == "train.max_steps: 5"
    assert trainer.state_dict()["bad_updates"] == 1
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    [folder] = (tmp_path / "crash").iterdir()
    assert folder.name == "step_00000003"
    again = make_trainer("train.max_steps=7", "train.max_bad_updates=1", "train.ema_decay=0")
    again.load(trainer.run.checkpoint(5))
    break_update(again, 6, monkeypatch)
    with pytest.raises(
        DivergedError, match=r"update 6: .*optim\.lr.*skip it with train\.max_bad_updates=2"
    ):
        again.train()


def test_a_resumed_run_has_the_reports_of_an_uninterrupted_run(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    def rows(folder: Path) -> list[dict[str, Any]]:
        lines = [
            json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()
        ]
        timed = ("seconds", "tokens_per_second", "data_share", "valid_share", "save_share")
        return [{key: value for key, value in line.items() if key not in timed} for line in lines]

    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    every = ("train.log_every=5", "train.valid_every=4", "train.save_every=2")
    assert (
        run_mt("train", small_yaml(tmp_path / "straight"), *every, "train.max_steps=12").returncode
        == 0
    )
    for steps in (2, 4, 7, 8, 11, 12):
        assert (
            run_mt(
                "train", small_yaml(tmp_path / "stopped"), *every, f"train.max_steps={steps}"
            ).returncode
            == 0
        )
    straight, stopped = rows(tmp_path / "straight"), rows(tmp_path / "stopped")
    trained = [
        [row for row in rows_of_run if row["kind"] == "train"]
        for rows_of_run in (straight, stopped)
    ]
    assert trained[0] == trained[1]
    assert [row["step"] for row in trained[0]] == [5, 10, 12]
    scored = [
        {
            row["step"]: (row["loss"], row["bleu"], row["chrf"])
            for row in rows_of_run
            if row["kind"] == "valid"
        }
        for rows_of_run in (straight, stopped)
    ]
    assert sorted(scored[0]) == [4, 8, 12]
    assert {step: scored[1][step] for step in scored[0]} == scored[0]


def test_a_checkpoint_is_saved_before_it_is_validated(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer("train.max_steps=4", "train.valid_every=4", "train.save_every=4")
    assert trainer.validator is not None

    def out_of_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trainer.validator, "validate", out_of_memory)
    with pytest.raises(MemoryError):
        trainer.train()
    assert trainer.checkpoints.steps() == [4]
    again = make_trainer("train.max_steps=4", "train.valid_every=4", "train.save_every=4")
    again.load(trainer.run.checkpoint(4))
    assert again.train() == "train.max_steps: 4"
    assert again.checkpoints.scores(4) == again.scores


def test_only_scores_of_the_same_validation_are_compared(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert (
        run_mt(
            "train",
            config,
            "train.max_steps=6",
            "train.valid_every=2",
            "train.save_every=2",
            "train.metric=chrf",
        ).returncode
        == 0
    )
    folder = tmp_path / "run/checkpoints"
    for change in (
        ["train.metric=loss"],
        ["train.metric=loss", f"data.valid=[{{src: {sample}/test.de, tgt: {sample}/test.en}}]"],
    ):
        state = json.loads((folder / "last/training/state.json").read_text())
        result = run_mt(
            "train",
            config,
            *change,
            "train.valid_every=2",
            "train.save_every=2",
            f"train.max_steps={state['step'] + 2}",
        )
        assert result.returncode == 0, result.stderr
        assert (
            "the text, search or metric of validation has changed, so the best checkpoint"
            in result.stderr
        )
        kept = {
            path.name: json.loads((tmp_path / f"run/valid/{path.name}/scores.json").read_text())
            for path in folder.glob("step_*")
        }
        measured = kept[(folder / "last").readlink().name]["measured"]
        alike = {
            name: scores["loss"] for name, scores in kept.items() if scores["measured"] == measured
        }
        assert len(alike) >= 2  # the best checkpoint was scored again
        assert (folder / "best").readlink().name == min(alike, key=lambda name: alike[name])


def test_validation_samples_and_reports_each_corpus(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    valid = (
        f"[{{name: one, src: {sample}/valid.de, tgt: {sample}/valid.en}}, "
        f"{{name: two, src: {sample}/test.de, tgt: {sample}/test.en}}]"
    )
    result = run_mt(
        "train",
        small_yaml(tmp_path),
        f"data.valid={valid}",
        "valid.max_sentences=10",
        "train.max_steps=2",
    )
    assert result.returncode == 0, result.stderr
    details = json.loads((tmp_path / "run/valid/step_00000002/scores.json").read_text())
    assert details["sentences"] == 10
    assert set(details["corpora"]) == {"one", "two"}
    assert "  one: BLEU" in result.stderr
    assert sample_sizes([1000, 10, 90], 100) == [90, 1, 8]
    assert sample_sizes([3, 4], 10) == [3, 4]


def test_a_very_long_validation_line_is_named_and_left_out(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    for language in ("de", "en"):
        lines = (sample / f"valid.{language}").read_text(encoding="utf-8")
        (tmp_path / f"valid.{language}").write_text(
            lines + "Hund und Katze, " * 8000 + "\n", encoding="utf-8"
        )
    valid = f"[{{src: {tmp_path}/valid.de, tgt: {tmp_path}/valid.en}}]"
    result = run_mt(
        "train",
        small_yaml(tmp_path),
        f"data.valid={valid}",
        "train.max_steps=2",
        "valid.max_sentences=5",
    )
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path}/valid.de:21: " in result.stderr
    assert "left out of the validation loss" in result.stderr


def test_a_schedule_may_change_and_a_finished_run_names_its_limit(
    trained_run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    config = small_yaml(tmp_path)
    changes = (
        "optim.lr=5e-4",
        "optim.warmup_steps=3",
        "optim.clip_norm=0.5",
        "optim.schedule=constant",
    )
    result = run_mt("train", config, *changes, "train.max_steps=14")
    assert result.returncode == 0, result.stderr
    assert "changed since the last start: optim.lr: 0.001 -> 0.0005" in result.stderr
    patient = (
        "train.patience=1",
        "train.valid_every=1",
        "optim.lr=1e-9",
        "train.metric=loss",
        "train.max_steps=400",
    )
    assert run_mt("train", config, *patient).returncode == 0
    assert "raise train.patience to train longer" in run_mt("train", config, *patient).stderr
    alone = run_mt("train", config, "run_dir=elsewhere", "data.valid=[]", "train.patience=2")
    assert (alone.returncode, "but data.valid is empty" in alone.stderr) == (2, True)
