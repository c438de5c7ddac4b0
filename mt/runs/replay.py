"""A batch that broke training, run again alone: its loss and gradients, and where the first number
that is not finite comes from.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt.data.batch import IdPair, collate, moved, pack
from mt.decode.loading import LoadedModel, load_model
from mt.errors import CheckpointError
from mt.model.kernels import packs
from mt.runtime.device import Compute, set_up_compute
from mt.train.crash import read_crash
from mt.train.objective import loss_sums
from mt.train.updates import seed_draws


@dataclass(frozen=True)
class Replayed:
    """One micro-batch run again."""

    num_pairs: int
    loss: float  # smoothed, nats a target token
    grad_norm: float  # of this micro-batch alone
    culprit: (
        str | None
    )  # the first module whose output, else the first parameter whose gradient, is not finite

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay(folder: Path, device: str = "auto") -> list[Replayed]:
    """Run each micro-batch of a crash folder again. Raises `CheckpointError` for a folder that is
    something else.

    With the weights, ids and dropout of the update that broke, on the same device and with as many
    threads, the numbers are its own.
    """
    loaded = load_model(folder, torch.device("cpu"))
    micro_batches = read_crash(loaded)
    config = loaded.config
    sizes = (loaded.tokenizer.src_vocab_size, loaded.tokenizer.tgt_vocab_size)
    numbers = [loaded.provenance.get(name) for name in ("step", "loss_scale", "num_tokens")]
    in_range = (
        0 <= i < size
        for pairs in micro_batches
        for pair in pairs
        for side, size in zip(pair, sizes, strict=True)
        for i in side
    )
    if not all(isinstance(number, int | float) and number > 0 for number in numbers) or not all(
        in_range
    ):
        raise CheckpointError(
            f"{folder}: its batch does not fit its model; the folder is damaged or not a crash folder"
        )
    place = device if device != "auto" else config.device
    deterministic = config.train.deterministic
    compute = set_up_compute(
        place, config.precision, config.threads, for_training=True, deterministic=deterministic
    ).set_threads()
    loaded.model.to(compute.device).train()
    return [_replay(loaded, compute, index, pairs) for index, pairs in enumerate(micro_batches)]


def _replay(loaded: LoadedModel, compute: Compute, index: int, pairs: Sequence[IdPair]) -> Replayed:
    model, config, about = loaded.model, loaded.config, loaded.provenance
    join = pack if packs(config.model, compute) else collate
    batch = moved(join(pairs), compute.device)
    model.zero_grad()
    seed_draws(config.seed, about["step"], index)
    with _first_not_finite(model) as found, compute.autocast():
        loss = loss_sums(model, batch, config.train.label_smoothing).smoothed
    (loss * (about["loss_scale"] / about["num_tokens"])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())) / about["loss_scale"]
    found += [
        f"the gradient of {name}"
        for name, gradient in gradients.items()
        if not gradient.isfinite().all()
    ]
    return Replayed(
        len(pairs),
        float(loss.detach()) / batch.num_tokens,
        float(norm),
        found[0] if found else None,
    )


@contextmanager
def _first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collects, in the order in which they end, the modules whose output is not finite while the
    block runs.
    """
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(f"the output of {name}")

        return hook

    hooks = [
        module.register_forward_hook(look(name)) for name, module in model.named_modules() if name
    ]
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()
