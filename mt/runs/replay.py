"""`mt replay`: run a crash folder's batch again, and find what is not finite."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt.data.batch import IdPair, collate, pack, to_device
from mt.decode.loading import LoadedModel, load_model
from mt.errors import CheckpointError
from mt.model.kernels import packs
from mt.runtime.device import Compute, set_up_compute
from mt.train.crash import read_crash
from mt.train.objective import loss_sums
from mt.train.updates import seed_draws


@dataclass(frozen=True)
class Replayed:
    """The result of running one micro-batch again."""

    num_pairs: int
    loss: float  # with label smoothing, in nats per target token
    grad_norm: float  # gradient norm of this micro-batch
    # The first module whose output is not finite. If there is none, the first parameter whose
    # gradient is not finite.
    culprit: str | None

    @property
    def finite(self) -> bool:
        """Whether the loss and the gradients are finite."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def replay(folder: Path, device: str = "auto") -> list[Replayed]:
    """Run each micro-batch of a crash folder again.

    Weights, ids and dropout are the same as in the failed update, so the results are identical on
    the same device with the same number of threads. Raises `CheckpointError` if `folder` is not a
    crash folder.
    """
    loaded = load_model(folder, torch.device("cpu"))
    micro_batches = read_crash(loaded)
    config = loaded.config
    sizes = (loaded.tokenizer.src_vocab_size, loaded.tokenizer.tgt_vocab_size)
    numbers = (loaded.provenance.get(name) for name in ("step", "loss_scale", "num_tokens"))
    ids_in_range = (
        0 <= i < size
        for pairs in micro_batches
        for pair in pairs
        for side, size in zip(pair, sizes, strict=True)
        for i in side
    )
    positive = (isinstance(number, int | float) and number > 0 for number in numbers)
    if not (all(positive) and all(ids_in_range)):
        raise CheckpointError(
            f"{folder}: the batch does not match the model; the folder is damaged or is not a "
            "crash folder"
        )
    compute = set_up_compute(
        device if device != "auto" else config.device,
        config.precision,
        config.threads,
        for_training=True,
        deterministic=config.train.deterministic,
    ).set_process_threads()
    loaded.model.to(compute.device).train()
    return [_replay(loaded, compute, index, pairs) for index, pairs in enumerate(micro_batches)]


def _replay(loaded: LoadedModel, compute: Compute, index: int, pairs: Sequence[IdPair]) -> Replayed:
    model, config, about = loaded.model, loaded.config, loaded.provenance
    join = pack if packs(config.model, compute) else collate
    batch = to_device(join(pairs), compute.device)
    model.zero_grad()
    seed_draws(config.seed, about["step"], index)
    with _record_not_finite(model) as culprits, compute.autocast():
        loss = loss_sums(model, batch, config.train.label_smoothing).smoothed
    (loss * (about["loss_scale"] / about["num_tokens"])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values())) / about["loss_scale"]
    culprits += [
        f"the gradient of {name}"
        for name, gradient in gradients.items()
        if not gradient.isfinite().all()
    ]
    mean_loss = float(loss.detach()) / batch.num_tokens
    return Replayed(len(pairs), mean_loss, float(norm), next(iter(culprits), None))


@contextmanager
def _record_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list to which the block adds each module whose output is not finite."""
    culprits: list[str] = []

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                culprits.append(f"the output of {name}")

        return hook

    modules = [(name, module) for name, module in model.named_modules() if name]
    hooks = [module.register_forward_hook(hook_for(name)) for name, module in modules]
    try:
        yield culprits
    finally:
        for hook in hooks:
            hook.remove()
