"""Apply gradients: clip them, scale the loss for fp16, and skip updates that are not finite.

All of this is computed on the device and passed to the fused optimizer, so a GPU never waits for
the host. The host reads the numbers of an update while the GPU computes the next one.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mt.data.order import Update
from mt.errors import DivergedError
from mt.runtime.shards import unsharded

POLL = 0.0005  # seconds between two checks whether the GPU is done
GROW_AFTER = 2000  # finite updates before the loss scale doubles (Micikevicius et al. 2018)


class LossScale:
    """A factor for the loss that keeps small fp16 gradients from becoming zero.

    It is halved when gradients are not finite, and doubled after `GROW_AFTER` updates with finite
    gradients in a row.
    """

    NAMES = ("loss_scale", "loss_scale_good")  # names of the tensors in a checkpoint

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.tensor(2.0**16 if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)  # finite updates since the scale has changed

    def update(self, finite: Tensor) -> None:
        """Adjust the scale after an update. `finite` says whether the gradients were finite."""
        if not self.enabled:
            return
        good = torch.where(finite, self.good + 1, 0)
        grow = good == GROW_AFTER
        self.scale = torch.where(
            finite, torch.where(grow, self.scale * 2, self.scale), self.scale / 2
        )
        self.good = torch.where(grow, 0, good)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to store in a checkpoint, or {} if loss scaling is disabled."""
        return dict(zip(self.NAMES, (self.scale, self.good), strict=True)) if self.enabled else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state from `state_dict`."""
        if self.enabled and state:
            self.scale, self.good = (state[name].to(self.scale.device) for name in self.NAMES)


def apply_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    scale: LossScale,
    clip_norm: float,
    bad_updates: Tensor,
    max_bad: int = 0,
) -> tuple[Tensor, Tensor]:
    """Run a step of a fused optimizer, and return (gradient norm, number of bad updates).

    The step is skipped if `loss` or a gradient is not finite. After more than `max_bad` bad
    updates, all steps are skipped, so that the weights have not changed since the bad update when
    the host notices it. In fp16, an overflow is not a bad update while the scale can be halved.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    scaled_norm = unsharded(torch.nn.utils.get_total_norm(gradients))
    norm = scaled_norm / scale.scale
    finite = norm.isfinite() & loss.isfinite()
    excess = (norm / clip_norm).clamp(min=1.0) if clip_norm else torch.ones_like(norm)
    # The optimizer divides the gradients by `grad_scale`, which saves a separate pass over them.
    optimizer.grad_scale = scale.scale * excess  # type: ignore[attr-defined]
    optimizer.found_inf = (~finite | (bad_updates > max_bad)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    is_bad = ~finite & (scale.scale <= 1) if scale.enabled else ~finite
    scale.update(finite)
    return norm, bad_updates + is_bad


@dataclass(frozen=True)
class UpdateStats:
    """The numbers of an update. Losses are means over the target tokens."""

    loss: float  # with label smoothing
    nll: float  # negative log-likelihood in nats per token, without label smoothing
    grad_norm: float  # before clipping
    lr: float
    num_tokens: int


def wait_for_gpu(event: torch.cuda.Event, patience: float | None) -> None:
    """Wait until a GPU has reached `event`, for at most `patience` seconds (None means no limit).

    The limit is needed because a GPU can wait forever for a rank that has stopped responding.
    Raises a `RuntimeError` when the time is up, which the caller treats as a lost rank.
    """
    if patience is None:
        event.synchronize()
        return
    end = time.monotonic() + patience
    while not event.query():
        if time.monotonic() > end:
            raise RuntimeError(f"Timed out waiting for the GPU for {patience:g} s")
        time.sleep(POLL)


class PendingStats:
    """The numbers of an update, which a GPU may not have computed yet."""

    def __init__(
        self, step: int, numbers: Tensor, lr: float, update: Update, loss_scale: Tensor
    ) -> None:
        """`numbers` are the loss, the nll, the gradient norm, and how many updates were bad."""
        self.step, self.lr, self.update, self.loss_scale = step, lr, update, loss_scale
        self._done = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(
                numbers, non_blocking=True
            )
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._numbers = numbers

    def read(self, patience: float | None = None, bad_before: int = 0) -> UpdateStats:
        """Wait for the numbers, and return them. `patience` is explained in `wait_for_gpu`.

        Raises `DivergedError` if this update was bad, which means that the number of bad updates
        is now more than `bad_before`.
        """
        if self._done is not None:
            wait_for_gpu(self._done, patience)
        loss, nll, norm, bad_updates = self._numbers.tolist()
        if bad_updates > bad_before:
            raise DivergedError(
                f"update {self.step}: loss {loss}, gradient norm {norm}; "
                "this update was not applied to the weights"
            )
        return UpdateStats(loss, nll, norm, self.lr, self.update.num_tokens)
