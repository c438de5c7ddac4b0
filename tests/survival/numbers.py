"""NaN or infinity in the loss, a gradient or a weight stops training before the weights change.

`mt replay` can then run the batch of that update again.
"""

from pathlib import Path
from unittest.mock import patch

import torch

import mt.train.objective as loss_module
from mt.config import load_config
from mt.data.prepare import prepare
from mt.errors import DivergedError
from mt.runs.replay import replay
from mt.runtime.device import Compute
from mt.train.cross_entropy import Loss
from mt.train.trainer import Trainer, trial
from survival.harness import start, write_config

TITLE = "NaN and infinity: never in the weights"
BAD = {"nan": float("nan"), "inf": float("inf")}
PLACES = ("loss", "gradient", "weight")


def cases(full: bool) -> list[str]:
    """Return a case for each value and place, at several updates."""
    if full:
        return [
            f"{value} {place} {step}"
            for step in (1, 2, 7, 15, 30)
            for place in PLACES
            for value in BAD
        ]
    return [
        f"{value} {place} {step}"
        for place in PLACES
        for value, step in zip(BAD, (1, 3), strict=True)
    ]


def run(case: str, folder: Path) -> str:
    """Train in a child up to an update, break that update, and check the weights."""
    problem = folder / "problem.txt"
    config = write_config(folder)

    def train_and_check() -> None:
        settings = load_config(config, ["train.grad_accum_steps=2"])
        with trial(
            settings, prepare(settings), Compute(torch.device("cpu"), torch.float32)
        ) as trainer:
            problem.write_text(check_update(trainer, *case.split()))

    code = start(train_and_check, folder / "log.txt").wait()
    if code:
        return f"exit {code}: {(folder / 'log.txt').read_text()[-300:]}"
    return problem.read_text()


def check_update(trainer: Trainer, value: str, place: str, step: str) -> str:
    """Break update `step` on purpose, and return what is wrong afterwards, or ""."""
    updates = trainer.loader.updates()
    for _ in range(int(step) - 1):
        trainer.train_step(next(updates)).read()
    update, bad = next(updates), BAD[value]
    if place == "weight":
        with torch.no_grad():
            trainer.model.encoder.embed_tokens.weight[
                int(update.micro_batches[-1].src.flatten()[0])
            ] = bad
    before = {name: weight.clone() for name, weight in trainer.weights().items()}
    moments = {name: tensor.clone() for name, tensor in trainer.training_state().optimizer.items()}
    try:
        with corrupted(place, bad):
            trainer.report(trainer.train_step(update))
        return "no error was raised"
    except DivergedError as error:
        if f"update {step}" not in str(error) or "mt replay" not in str(error):
            return f"unexpected message: {error}"
    if not all(
        bytes_of(weight) == bytes_of(before[name]) for name, weight in trainer.weights().items()
    ):
        return "the weights have changed"
    after = trainer.training_state().optimizer
    if any(not torch.equal(tensor, after[name]) for name, tensor in moments.items()):
        return "the state of the optimizer has changed"
    replayed = replay(trainer.run.crash(int(step)).path, "cpu")
    pairs = [len(batch.src) for batch in update.micro_batches]
    if [micro.num_pairs for micro in replayed] != pairs:
        return "the crash folder does not hold the pairs of the update"
    if place == "weight" and all(micro.finite for micro in replayed):
        return "replaying the batch finds only finite values"
    return ""


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, so that NaN compares equal to itself."""
    return tensor.numpy().tobytes()


def corrupted(place: str, bad: float):  # type: ignore[no-untyped-def]
    """Return a context in which the loss or only its gradient is multiplied by `bad`."""
    real = loss_module.loss_sums

    def loss_sums(model, batch, smoothing):  # type: ignore[no-untyped-def]
        loss = real(model, batch, smoothing)
        if place == "loss":
            return Loss(loss.smoothed * bad, loss.nll)
        if place == "gradient":
            loss.smoothed.register_hook(lambda gradient: gradient * bad)
        return loss

    return patch.object(loss_module, "loss_sums", loss_sums)
