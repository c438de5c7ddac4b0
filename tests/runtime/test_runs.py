"""Commands on several ranks: the same results as on one rank, and each message printed once."""

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

import mt.train.objective as loss_module
from mt.artifacts import CheckpointManager, ModelFolder
from mt.config import ResolvedRun, load_config
from mt.data.prepare import prepare
from mt.errors import CheckpointError, DivergedError, MTError
from mt.runtime import shards
from mt.runtime.device import Compute
from mt.runtime.world import World
from mt.train.cross_entropy import Loss
from mt.train.progress import TrainProgress
from mt.train.stopping import SignalStop
from mt.train.trainer import Trainer, trial
from tests.conftest import run_mt
from tests.runtime.ranks import mt_on_ranks, on_ranks

CPU = Compute(torch.device("cpu"), torch.float32)


def lines(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    """Return the lines of the given kind in metrics.jsonl, keyed by update."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in rows if line["kind"] == kind}


def test_a_run_on_two_ranks_has_the_scores_of_one_and_only_rank_0_prints(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    options = ("precision=fp32", "train.log_every=1")
    first, second = mt_on_ranks(2, "train", config, *options, f"run_dir={tmp_path}/two")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout + second.stderr == ""
    assert "2 ranks (ddp), each CPU, 1 threads, fp32" in first.stderr
    assert run_mt("train", config, *options, f"run_dir={tmp_path}/one").returncode == 0
    for kind, names in (
        ("train", ("loss", "nll", "grad_norm", "lr", "update_tokens")),
        ("valid", ("loss", "bleu", "chrf")),
    ):
        one, two = lines(tmp_path / "one", kind), lines(tmp_path / "two", kind)
        assert one.keys() == two.keys()
        for step in one:
            assert [two[step][name] for name in names] == pytest.approx(
                [one[step][name] for name in names], rel=1e-4
            ), (kind, step)
    assert (tmp_path / "one/valid/step_00000012/hyp.txt").read_text() == (
        tmp_path / "two/valid/step_00000012/hyp.txt"
    ).read_text()
    assert json.loads((tmp_path / "two/status.json").read_text())["state"] == "done"


def trained_pairs(trainer: Trainer, steps: int) -> list[list[tuple[int, int]]]:
    """Train `steps` updates; for each, return (micro-batch, pair) for all pairs on this rank."""
    seen = []
    updates = trainer.loader.updates()
    for update in (next(updates) for _ in range(steps)):
        share = list(enumerate(update.indices))[trainer.world.rank :: trainer.world.size]
        for (_, indices), batch in zip(share, update.micro_batches, strict=True):
            assert len(batch.src) == len(indices)
        trainer.train_step(update).read()
        seen.append([(number, int(pair)) for number, indices in share for pair in indices])
    updates.close()  # type: ignore[attr-defined]
    return seen


def test_each_pair_is_trained_once_per_epoch_while_the_number_of_ranks_changes(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    """The run resumes on two ranks, then on one, then on three and on two with a sharded model, and
    so on. Its batches and weights equal those of a single process that never stops.
    """
    path, run_dir, legs = small_yaml(tmp_path), tmp_path / "legs", 8
    run_dir.mkdir()

    def leg(
        world: World, engine: str, steps: int, checkpoint: ModelFolder | None
    ) -> list[list[tuple[int, int]]]:
        config = load_config(path, [f"train.parallel={engine}", "train.grad_accum_steps=6"])
        manager = CheckpointManager(run_dir, 2, 0, "bleu", world)
        trainer = Trainer(ResolvedRun(run_dir, config), prepare(config, world), CPU, manager, world)
        if checkpoint is not None:
            trainer.load(checkpoint)
        seen = trained_pairs(trainer, steps)
        manager.save(
            trainer.step, config, trainer.prepared.tokenizer.save, trainer.training_state(), {}
        )
        return seen

    together: list[list[tuple[int, int]]] = []
    for number in range(legs):
        size, engine = [(2, "ddp"), (1, "ddp"), (3, "fsdp"), (2, "fsdp")][number % 4]
        checkpoint = CheckpointManager(run_dir, 2, 0, "bleu").newest()
        steps = 1 + number % 4
        by_rank = on_ranks(size, lambda world: leg(world, engine, steps, checkpoint))  # noqa: B023
        together += [
            sorted(pair for share in shares for pair in share)
            for shares in zip(*by_rank, strict=True)
        ]

    config = load_config(path, ["train.grad_accum_steps=6"])
    with trial(config, prepare(config), CPU) as trainer:
        in_one_go = [sorted(pairs) for pairs in trained_pairs(trainer, len(together))]
        assert together == in_one_go
        num_pairs = len(trainer.prepared.train)
        first_epoch = [pair for update in together for _, pair in update][:num_pairs]
        assert Counter(first_epoch) == Counter(range(num_pairs))
        assert len([pair for update in together for pair in update]) > 1.5 * num_pairs
        newest = CheckpointManager(run_dir, 2, 0, "bleu").newest()
        assert newest is not None
        average = newest.weights()
        assert trainer.average is not None
        for name, weight in trainer.average.weights.items():
            assert torch.allclose(weight, average[name], rtol=0, atol=1e-5), name


def test_a_sharded_checkpoint_restores_every_tensor_bit_for_bit(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_yaml(tmp_path)

    def save(world: World) -> dict[str, torch.Tensor]:
        config = load_config(path, ["train.parallel=fsdp"])
        manager = CheckpointManager(tmp_path, 2, 0, "bleu", world)
        trainer = Trainer(
            ResolvedRun(tmp_path, config), prepare(config, world), CPU, manager, world
        )
        trained_pairs(trainer, 3)
        manager.save(
            trainer.step, config, trainer.prepared.tokenizer.save, trainer.training_state(), {}
        )
        state = trainer.training_state()
        return {
            name: shards.unsharded(tensor).clone()
            for name, tensor in {**state.weights, **state.optimizer}.items()
        }

    expected = on_ranks(2, save)[0]
    config = load_config(path)
    with trial(config, prepare(config), CPU) as trainer:
        trainer.load(ModelFolder(tmp_path / "checkpoints/step_00000003"))
        state = trainer.training_state()
        for name, tensor in {**state.weights, **state.optimizer}.items():
            assert torch.equal(tensor, expected[name]), name
        broken = {**state.weights, "new": torch.zeros(2)}
        with pytest.raises(CheckpointError, match="new"):
            type(state)(broken, state.average, state.optimizer, {}).load(
                ModelFolder(tmp_path / "checkpoints/step_00000003")
            )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_ranks_before_the_update(
    bad: float, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    path, real = small_yaml(tmp_path), loss_module.loss_sums

    def work(world: World) -> Any:
        config = load_config(path)
        manager = CheckpointManager(tmp_path, 2, 0, "bleu", world)
        trainer = Trainer(
            ResolvedRun(tmp_path, config), prepare(config, world), CPU, manager, world
        )
        before = {name: weight.clone() for name, weight in trainer.weights().items()}
        update = next(trainer.loader.updates())

        def broken(*args: Any) -> Loss:
            loss = real(*args)
            return Loss(loss.smoothed * bad if world.rank == 1 else loss.smoothed, loss.nll)

        with patch.object(loss_module, "loss_sums", broken), pytest.raises(DivergedError) as error:
            trainer.report(trainer.train_step(update))
        assert all(torch.equal(before[name], weight) for name, weight in trainer.weights().items())
        return str(error.value), sum(map(len, update.indices))

    (message, num_pairs), _ = on_ranks(2, work)
    assert "update 1" in message
    written = (tmp_path / "crash/step_00000001/batch.jsonl").read_text().splitlines()
    assert len(written) == num_pairs
    assert {json.loads(line)["micro_batch"] for line in written} == {0, 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_save_that_fails_on_one_rank_fails_on_all_and_leaves_nothing(
    rank: int, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_yaml(tmp_path)

    def work(world: World) -> str:
        config = load_config(path, ["train.parallel=fsdp"])
        manager = CheckpointManager(tmp_path, 2, 0, "bleu", world)
        trainer = Trainer(
            ResolvedRun(tmp_path, config), prepare(config, world), CPU, manager, world
        )
        trained_pairs(trainer, 1)

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, os.strerror(28))

        broken = patch("safetensors.torch.save", full) if world.rank == rank else nullcontext()
        with broken, pytest.raises(CheckpointError) as error:
            manager.save(1, config, trainer.prepared.tokenizer.save, trainer.training_state(), {})
        with (
            patch("mt.artifacts.ModelFolder.write", full),
            pytest.raises(CheckpointError),
        ):
            manager.save(1, config, trainer.prepared.tokenizer.save, trainer.training_state(), {})
        return str(error.value)

    assert all("No space left on device" in message for message in on_ranks(2, work))
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_config_error_is_printed_once_and_is_the_exit_code_of_every_rank(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    first, second = mt_on_ranks(2, "train", config, "data.src_lang=de", "train.grad_accum_steps=1")
    assert (first.returncode, second.returncode) == (2, 2)
    assert "updates have at most 1 micro-batches, too few for 2 ranks" in first.stderr
    (tmp_path / "train.de").write_text("one line\n")
    first, second = mt_on_ranks(
        2, "train", config, f"data.train=[{{src: {tmp_path}/train.de, tgt: {config.parent}/none}}]"
    )
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "No such file" in first.stderr
    assert second.stderr == ""


def test_a_run_that_diverged_is_not_restarted_by_the_launcher(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    bad = ("optim.lr=1e30", "optim.warmup_steps=0", "model.norm=post")
    first, second = mt_on_ranks(2, "train", config, *bad)
    assert (first.returncode, second.returncode) == (3, 3), first.stderr
    assert "mt replay" in first.stderr
    assert second.stderr == ""
    before = (tmp_path / "run/status.json").read_text()
    assert json.loads(before)["state"] == "diverged"
    first, second = mt_on_ranks(2, "train", config, *bad, attempt=1)
    assert (first.returncode, second.returncode) == (3, 3)
    assert "not restarted: update" in first.stderr
    assert second.stderr == ""
    assert (tmp_path / "run/status.json").read_text() == before


@pytest.mark.parametrize(
    "options", [(), ("--format", "jsonl"), ("--format", "tsv", "--nbest", "2")]
)
def test_ranks_translate_like_one_process_and_in_the_same_order(
    options: tuple[str, ...], trained_run: Path, sample: Path
) -> None:
    source = (sample / "test.de").read_text() * 2 + "\n\nEin Hund\n"
    alone = run_mt("translate", trained_run, *options, stdin=source)
    first, *others = mt_on_ranks(3, "translate", trained_run, *options, stdin=source)
    assert first.returncode == 0, first.stderr
    assert first.stdout == alone.stdout
    assert [(other.returncode, other.stdout, other.stderr) for other in others] == [(0, "", "")] * 2


def test_ranks_write_files_and_alignments_once(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    names = [tmp_path / name for name in ("one.txt", "one.align", "two.txt", "two.align")]
    assert (
        run_mt(
            "translate", trained_run, sample / "test.de", "-o", names[0], "--alignment", names[1]
        ).returncode
        == 0
    )
    ended = mt_on_ranks(
        2, "translate", trained_run, sample / "test.de", "-o", names[2], "--alignment", names[3]
    )
    assert [process.returncode for process in ended] == [0, 0], ended
    assert names[0].read_bytes() == names[2].read_bytes()
    assert names[1].read_bytes() == names[3].read_bytes()


def test_ranks_evaluate_as_one(trained_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, symlinks=True)
    alone = json.loads(run_mt("evaluate", run, "--json").stdout)
    first, second = mt_on_ranks(2, "evaluate", run, "--json")
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, "")
    assert [result["scores"] for result in json.loads(first.stdout)] == [
        result["scores"] for result in alone
    ]


def test_a_signal_to_one_rank_reaches_all_ranks() -> None:
    def work(world: World) -> list[int]:
        stop, known = SignalStop(world), []
        with stop.installed():
            stop.share_signal()
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(3):
                stop.share_signal()
                known.append(int(stop.signal or 0))
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards the signal as well
        return known

    assert on_ranks(2, work) == [[15, 15, 15]] * 2


@pytest.mark.parametrize("kind", ["signal", "error"])
def test_if_one_rank_leaves_a_validation_all_ranks_leave_it(
    kind: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_yaml(tmp_path)

    def work(world: World) -> tuple[str, int, bool]:
        config = load_config(path)
        manager = CheckpointManager(tmp_path, 2, 0, "bleu", world)
        trainer = Trainer(
            ResolvedRun(tmp_path, config), prepare(config, world), CPU, manager, world
        )
        trainer.progress = TrainProgress(config.train, None, 0, trainer.seconds, "fp32")
        assert trainer.validator is not None
        before = {name: weight.clone() for name, weight in trainer.weights().items()}

        def leave(*_: Any) -> float:
            if kind == "signal":
                os.kill(os.getpid(), signal.SIGINT)
            raise CheckpointError("the model's scores are not finite")

        message = ""
        with (
            trainer.stop.installed(),
            patch.object(trainer.validator, "_nll", leave) if world.rank == 1 else nullcontext(),
        ):
            try:
                assert not trainer.validate()
            except MTError as error:
                message = str(error)
        unchanged = all(
            torch.equal(before[name], weight) for name, weight in trainer.weights().items()
        )
        assert not trainer.scores
        return message, int(trainer.stop.signal or 0), unchanged

    results = on_ranks(2, work)
    if kind == "signal":
        assert results == [("", 2, True)] * 2
    else:
        assert results == [
            ("rank 1: the model's scores are not finite", 0, True),
            ("the model's scores are not finite", 0, True),
        ]
