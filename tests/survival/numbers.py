"""NaN and infinity in the loss, in a gradient or out of a weight: none reaches the weights, and a
batch at fault breaks alone too.
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
    """Two values, three places, updates from the first on."""
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
    """Train to the update, break it, look at the weights, in a child."""
    said = folder / "said.txt"
    config = write_config(folder)

    def work() -> None:
        settings = load_config(config, ["train.grad_accum_steps=2"])
        with trial(
            settings, prepare(settings), Compute(torch.device("cpu"), torch.float32)
        ) as trainer:
            said.write_text(broken_update(trainer, *case.split()))

    code = start(work, folder / "log.txt").wait()
    return (
        said.read_text() if code == 0 else f"exit {code}: {(folder / 'log.txt').read_text()[-300:]}"
    )


def broken_update(trainer: Trainer, value: str, place: str, step: str) -> str:
    """What is wrong after an update that was broken on purpose, or nothing."""
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
        with broken(place, bad):
            trainer.report(trainer.train_step(update))
        return "the update passed"
    except DivergedError as error:
        if f"update {step}" not in str(error) or "mt replay" not in str(error):
            return f"the message is {error}"
    if not all(
        bytes_of(weight) == bytes_of(before[name]) for name, weight in trainer.weights().items()
    ):
        return "the weights have changed"
    after = trainer.training_state().optimizer
    if any(not torch.equal(tensor, after[name]) for name, tensor in moments.items()):
        return "the optimizer's state has changed"
    again = replay(trainer.run.crash(int(step)).path, "cpu")
    if [micro.num_pairs for micro in again] != [len(batch.src) for batch in update.micro_batches]:
        return "the crash folder has other pairs"
    if place == "weight" and all(micro.finite for micro in again):
        return "the batch alone is finite"
    return ""


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A tensor bit for bit: NaN equals itself."""
    return tensor.numpy().tobytes()


def broken(place: str, bad: float):  # type: ignore[no-untyped-def]
    """A context in which the loss, or a gradient alone, is `bad`."""
    real = loss_module.loss_sums

    def loss_sums(model, batch, smoothing):  # type: ignore[no-untyped-def]
        loss = real(model, batch, smoothing)
        if place == "loss":
            return Loss(loss.smoothed * bad, loss.nll)
        if place == "gradient":
            loss.smoothed.register_hook(lambda gradient: gradient * bad)
        return loss

    return patch.object(loss_module, "loss_sums", loss_sums)
