"""What stands between gradients and weights: clipping, the scale of fp16, and the guard against
what is not finite.

All of it is computed on the device and handed to the fused optimizer there, so a GPU never waits
for the host: the host reads an update's numbers when the next one is under way.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mt.data.order import Update
from mt.errors import DivergedError
from mt.runtime.shards import unsharded

POLL = 0.0005  # seconds between two looks at a GPU; it has the next update to work on
GROW_AFTER = 2000  # finite updates until the scale of fp16 doubles (Micikevicius et al. 2018)


class LossScale:
    """The factor that keeps fp16 gradients above zero: halved after each that is not finite,
    doubled after `GROW_AFTER` that are.
    """

    NAMES = ("loss_scale", "loss_scale_good")  # of its state

    def __init__(self, device: torch.device, enabled: bool) -> None:
        self.enabled = enabled
        self.scale = torch.tensor(2.0**16 if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)

    def update(self, finite: Tensor) -> None:
        """Take in whether an update's gradients were `finite`."""
        if not self.enabled:
            return
        good = torch.where(finite, self.good + 1, 0)
        grow = good == GROW_AFTER
        self.scale = torch.where(
            finite, torch.where(grow, self.scale * 2, self.scale), self.scale / 2
        )
        self.good = torch.where(grow, 0, good)

    def state_dict(self) -> dict[str, Tensor]:
        """What a resume needs."""
        return dict(zip(self.NAMES, (self.scale, self.good), strict=True)) if self.enabled else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        if self.enabled and state:
            self.scale, self.good = (state[name].to(self.scale.device) for name in self.NAMES)


def apply_gradients(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, scale: LossScale, clip_norm: float, bad_updates: Tensor,
    max_bad: int = 0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One step of a fused optimizer, left out where `loss` or a gradient is not finite; gives
    (gradient norm, bad updates so far).

    Beyond `max_bad` of them, every later step is left out too: the host may hear of it late, and
    finds the weights that the bad batch met. The optimizer divides the gradients itself, by loss
    scale and clipping at once, so that they are read only twice. An fp16 gradient out of range is
    no divergence while its scale can fall.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    scaled_norm = unsharded(torch.nn.utils.get_total_norm(gradients))
    norm = scaled_norm / scale.scale
    finite = norm.isfinite() & loss.isfinite()
    excess = (norm / clip_norm).clamp(min=1.0) if clip_norm else torch.ones_like(norm)
    optimizer.grad_scale = scale.scale * excess  # type: ignore[attr-defined]
    optimizer.found_inf = (~finite | (bad_updates > max_bad)).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    hopeless = ~finite & (scale.scale <= 1) if scale.enabled else ~finite
    scale.update(finite)
    return norm, bad_updates + hopeless


@dataclass(frozen=True)
class UpdateStats:
    """What one update did; means are over its target tokens."""

    loss: float  # smoothed
    nll: float  # nats a token, without smoothing
    grad_norm: float  # before clipping
    lr: float
    num_tokens: int


def wait_for_gpu(event: torch.cuda.Event, patience: float | None) -> None:
    """Wait until a GPU has come to `event`, at most `patience` seconds; None: as long as it takes.

    A GPU can wait for another rank without end. Raises a `RuntimeError` that `Presence.lost` knows.
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
    """The numbers of an update that a GPU may still be computing."""

    def __init__(
        self, step: int, numbers: Tensor, lr: float, update: Update, loss_scale: Tensor
    ) -> None:
        """`numbers`: loss, nll, gradient norm, bad updates up to this one."""
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
        """Wait for them (`wait_for_gpu`). Raises `DivergedError` if there are more bad updates than
        `bad_before`: this one was left out.
        """
        if self._done is not None:
            wait_for_gpu(self._done, patience)
        loss, nll, norm, bad_updates = self._numbers.tolist()
        if bad_updates > bad_before:
            raise DivergedError(
                f"update {self.step}: loss {loss}, gradient norm {norm}; the weights are as before this update"
            )
        return UpdateStats(loss, nll, norm, self.lr, self.update.num_tokens)
