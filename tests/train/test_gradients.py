"""From gradients to weights: steps equal to PyTorch's, skipped updates, and the fp16 loss scale."""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mt.config import OptimConfig
from mt.data.batch import empty_batch
from mt.data.order import Update
from mt.errors import DivergedError
from mt.train import gradients as gradients_module
from mt.train.gradients import LossScale, PendingStats, UpdateStats, apply_gradients
from mt.train.optimizer import build_optimizer

CPU = torch.device("cpu")
# With an epsilon as large as the gradients, an Adam step depends on the scale of the gradients.
# Otherwise, Adam would divide by this scale, and the tests would not notice if it was wrong.
CONFIG = OptimConfig(lr=0.05, betas=[0.9, 0.98], eps=0.1, weight_decay=0.1)
FINITE = torch.tensor(1.0)
NONE_BAD = torch.tensor(False)  # no update so far was bad
ONE = torch.tensor(1.0)  # a loss scale of 1
UPDATE = Update.from_batches([empty_batch((8, 10, 80), CPU, packed=False)])  # 640 target tokens


pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.LayerNorm(9), nn.Linear(9, 3))


def loss_of(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    """Return a loss whose gradients vary by factors of ten from update to update, so that some are
    clipped and some are not.
    """
    draw = torch.Generator().manual_seed(step)
    return (
        model(torch.randn(7, 5, generator=draw)).square().mean() * 10.0 ** (step % 3 - 1) * factor
    )


class FakeEvent:
    """A fake GPU event that is done at its `done_at`-th query, or never if `done_at` is None."""

    def __init__(self, done_at: int | None) -> None:
        self.done_at, self.queries, self.waited = done_at, 0, False

    def query(self) -> bool:
        self.queries += 1
        return self.done_at is not None and self.queries >= self.done_at

    def synchronize(self) -> None:
        self.waited = True


def no_scale(device: torch.device = CPU) -> LossScale:
    return LossScale(device, enabled=False)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: range,
    scale: LossScale,
    clip_norm: float,
) -> list[float]:
    """Run some updates, and return their gradient norms."""
    norms = []
    for step in steps:
        loss = loss_of(model, step)
        (loss * scale.scale).backward()
        norm, diverged = apply_gradients(
            model, optimizer, loss.detach(), scale, clip_norm, NONE_BAD
        )
        assert not diverged
        norms.append(float(norm))
    return norms


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return copies of the weights and the optimizer state, including step counters."""
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        tensors |= {
            f"{key}.{name}": torch.as_tensor(value).clone()
            for key, value in optimizer.state[parameter].items()
        }
    return tensors


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


# --- the step


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_updates_equal_those_of_pytorchs_clipping_and_adamw(fused: bool, clip_norm: float) -> None:
    ours, theirs = network(), network()
    optimizer = build_optimizer(ours, CONFIG, CPU)
    groups = [
        {"params": [p for p in theirs.parameters() if (p.ndim >= 2) == matrices]}
        for matrices in (True, False)
    ]
    groups[1]["weight_decay"] = 0.0  # type: ignore[assignment]
    reference = torch.optim.AdamW(
        groups,
        lr=CONFIG.lr,
        betas=(0.9, 0.98),
        eps=CONFIG.eps,
        weight_decay=CONFIG.weight_decay,
        fused=fused,
    )
    norms = train(ours, optimizer, range(6), no_scale(), clip_norm)
    for step, norm in enumerate(norms):
        loss_of(theirs, step).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm or float("inf"))
        assert norm == pytest.approx(float(expected), rel=1e-5)
        reference.step()
        reference.zero_grad()
    assert min(norms) < 0.3 < max(norms)  # some updates are clipped, and some are not
    ours_now, theirs_now = everything(ours, optimizer), everything(theirs, reference)
    assert ours_now.keys() == theirs_now.keys()
    for name, value in ours_now.items():
        torch.testing.assert_close(value, theirs_now[name], rtol=1e-5, atol=1e-6, msg=name)
    assert all(p.grad is None for p in ours.parameters())  # the step has removed them


def test_the_clip_norm_changes_the_step() -> None:
    results = []
    for clip_norm in (0.0, 0.3, 1e6):
        model = network()
        train(model, build_optimizer(model, CONFIG, CPU), range(6), no_scale(), clip_norm)
        results.append(model[0].weight.detach())
    assert not torch.allclose(results[0], results[1], atol=1e-4)
    assert torch.equal(results[0], results[2])  # no gradient norm is above 1e6


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_a_loss_scale_does_not_change_the_weights(clip_norm: float) -> None:
    """The scale is a power of two, so not even the last bit of an fp32 weight changes."""
    results = []
    for enabled in (False, True):
        model = network()
        optimizer = build_optimizer(model, CONFIG, CPU)
        norms = train(model, optimizer, range(6), LossScale(CPU, enabled), clip_norm)
        results.append((norms, everything(model, optimizer)))
    assert results[0][0] == results[1][0]
    assert_equal(results[0][1], results[1][1])


def test_a_parameter_without_a_gradient_does_not_change() -> None:
    model = network()
    model[3].requires_grad_(False)
    before = model[3].weight.clone()
    train(model, build_optimizer(model, CONFIG, CPU), range(2), no_scale(), 0.3)
    assert torch.equal(model[3].weight, before)


# --- updates that are not finite


def spoil_gradient(model: nn.Sequential, loss: Tensor, bad: float) -> Tensor:
    assert model[0].weight.grad is not None
    model[0].weight.grad[2, 3] = bad
    return loss


def spoil_loss(model: nn.Sequential, loss: Tensor, bad: float) -> Tensor:
    return loss * bad


@pytest.mark.parametrize("spoil", [spoil_gradient, spoil_loss])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
@pytest.mark.parametrize("enabled", [False, True])
def test_an_update_that_is_not_finite_changes_nothing(
    spoil: Callable[[nn.Sequential, Tensor, float], Tensor],
    bad: float,
    before: int,
    clip_norm: float,
    enabled: bool,
) -> None:
    """A skipped update changes no bit of the weights, the optimizer state or later updates."""
    model, untouched = network(), network()
    optimizer, other = build_optimizer(model, CONFIG, CPU), build_optimizer(untouched, CONFIG, CPU)
    scale = LossScale(CPU, enabled)
    train(model, optimizer, range(before), scale, clip_norm)
    train(untouched, other, range(before), no_scale(), clip_norm)
    loss = loss_of(model, before)
    (loss * scale.scale).backward()
    _, diverged = apply_gradients(
        model, optimizer, spoil(model, loss.detach(), bad), scale, clip_norm, NONE_BAD
    )
    assert bool(diverged) is not enabled  # with a loss scale, halving the scale may still help
    expected = everything(untouched, other)
    # Before the first update there is no state. The skipped update may create it, filled with 0.
    for name, value in everything(model, optimizer).items():
        assert torch.equal(value, expected.get(name, torch.zeros_like(value))), name
    assert all(p.grad is None for p in model.parameters())
    train(model, optimizer, range(before, before + 3), scale, clip_norm)
    train(untouched, other, range(before, before + 3), no_scale(), clip_norm)
    assert_equal(everything(model, optimizer), everything(untouched, other))


# --- the loss scale of fp16

GOOD, BAD = torch.tensor(True), torch.tensor(False)


def test_the_scale_halves_after_each_bad_update_and_doubles_after_enough_good_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradients_module, "GROW_AFTER", 3)
    scale = LossScale(CPU, enabled=True)
    start = float(scale.scale)
    assert start == 65536
    scales = []
    for finite in [
        GOOD,
        GOOD,
        GOOD,
        GOOD,
        GOOD,
        BAD,
        GOOD,
        GOOD,
        BAD,
        BAD,
        GOOD,
        GOOD,
        GOOD,
        GOOD,
        GOOD,
        GOOD,
    ]:
        scale.update(finite)
        scales.append(float(scale.scale) / start)
    assert scales == [
        1,
        1,
        2,
        2,
        2,
        1,
        1,
        1,
        0.5,
        0.25,
        0.25,
        0.25,
        0.5,
        0.5,
        0.5,
        1,
    ]  # a bad update restarts the count of good updates


def test_a_disabled_scale_stays_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "GROW_AFTER", 1)
    scale = no_scale()
    for finite in (GOOD, BAD, GOOD, GOOD):
        scale.update(finite)
        assert float(scale.scale) == 1
    assert scale.state_dict() == {}


def test_a_scale_continues_from_its_saved_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "GROW_AFTER", 3)
    straight, resumed = LossScale(CPU, enabled=True), LossScale(CPU, enabled=True)
    for finite in (BAD, GOOD, GOOD):
        straight.update(finite)
    state = straight.state_dict()
    # The state is stored together with the optimizer's tensors.
    resumed.load_state_dict(state | {"exp_avg.weight": torch.zeros(3)})
    for _ in range(3):
        assert float(resumed.scale) == float(straight.scale)
        for scale in (straight, resumed):
            scale.update(GOOD)
    # The two good updates before the state was saved still count.
    assert float(resumed.scale) == 65536 * 2 / 2
    assert float(state["loss_scale"]) == 65536 / 2  # later updates do not change a saved state


def test_a_scale_ignores_the_state_of_another_precision() -> None:
    """A run that started in fp32 can resume in fp16, and vice versa."""
    fresh, off = LossScale(CPU, enabled=True), no_scale()
    fresh.load_state_dict({})
    assert float(fresh.scale) == 65536
    off.load_state_dict({"loss_scale": torch.tensor(8.0), "loss_scale_good": torch.tensor(1.0)})
    assert float(off.scale) == 1


def test_an_overflow_is_not_a_bad_update_until_the_scale_is_one() -> None:
    model = network()
    optimizer, scale = build_optimizer(model, CONFIG, CPU), LossScale(CPU, enabled=True)
    scales, outcomes = [], []
    for _ in range(17):
        scales.append(float(scale.scale))
        (loss_of(model, 0) * float("inf")).backward()
        outcomes.append(bool(apply_gradients(model, optimizer, FINITE, scale, 1.0, NONE_BAD)[1]))
    assert scales == [2.0**n for n in range(16, -1, -1)]
    assert outcomes == [False] * 16 + [True]


def test_after_a_bad_update_no_later_update_changes_the_weights() -> None:
    model = network()
    optimizer, scale = build_optimizer(model, CONFIG, CPU), no_scale()
    train(model, optimizer, range(2), scale, 1.0)
    before = everything(model, optimizer)
    diverged = NONE_BAD
    for factor in (float("nan"), 1.0, 1.0):
        loss_of(model, 2, factor).backward()
        _, diverged = apply_gradients(model, optimizer, FINITE, scale, 1.0, diverged)
        assert diverged
    assert all(
        torch.equal(value, before[name]) for name, value in everything(model, optimizer).items()
    )


# --- the statistics of an update


def test_the_stats_of_a_good_update_are_its_numbers() -> None:
    assert PendingStats(
        7, torch.tensor([2.5, 1.5, 0.25, 0.0]), 1e-3, UPDATE, ONE
    ).read() == UpdateStats(2.5, 1.5, 0.25, 1e-3, 640)


def pending_on_a_gpu(event: FakeEvent) -> PendingStats:
    stats = PendingStats(7, torch.tensor([2.5, 1.5, 0.25, 0.0]), 1e-3, UPDATE, ONE)
    stats._done = event  # type: ignore[assignment]
    return stats


def test_without_other_ranks_the_wait_for_a_gpu_has_no_limit() -> None:
    event = FakeEvent(done_at=None)
    assert pending_on_a_gpu(event).read() == UpdateStats(2.5, 1.5, 0.25, 1e-3, 640)
    assert (event.waited, event.queries) == (True, 0)


def test_numbers_that_a_gpu_computes_in_time_are_read() -> None:
    event = FakeEvent(done_at=5)
    assert pending_on_a_gpu(event).read(patience=60.0) == UpdateStats(2.5, 1.5, 0.25, 1e-3, 640)
    assert (event.waited, event.queries) == (False, 5)


def test_a_gpu_that_never_finishes_is_an_error_after_the_patience() -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"Timed out waiting for the GPU for 0\.3 s"):
        pending_on_a_gpu(FakeEvent(done_at=None)).read(patience=0.3)
    assert 0.3 <= time.monotonic() - start < 5


def test_reading_the_stats_of_a_bad_update_names_the_update() -> None:
    pending = PendingStats(
        1234, torch.tensor([float("nan"), 1.5, float("inf"), 1.0]), 1e-3, UPDATE, ONE
    )
    with pytest.raises(DivergedError, match=r"update 1234: loss nan, gradient norm inf"):
        pending.read()


def test_the_stats_of_an_overflow_that_halves_the_scale_can_be_read() -> None:
    """The gradient norm is not finite, but the update does not count as bad."""
    stats = PendingStats(3, torch.tensor([2.5, 1.5, float("inf"), 0.0]), 1e-3, UPDATE, ONE).read()
    assert stats.grad_norm == float("inf")


# --- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("patience", [None, 60.0])
def test_stats_on_a_gpu_do_not_change_if_they_are_read_late(
    patience: float | None,
) -> None:
    numbers = torch.tensor([2.5, 1.5, 0.25, 0.0], device="cuda")
    pending = PendingStats(7, numbers, 1e-3, UPDATE, ONE)
    numbers.fill_(float("nan"))  # queued on the GPU after the copy to the CPU
    assert pending.read(patience) == UpdateStats(2.5, 1.5, 0.25, 1e-3, 640)
    with pytest.raises(DivergedError, match="update 8"):
        PendingStats(
            8, torch.tensor([2.5, 1.5, 0.25, 1.0], device="cuda"), 1e-3, UPDATE, ONE
        ).read()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_updates_on_a_gpu_equal_those_on_a_cpu(clip_norm: float) -> None:
    on_cpu, on_gpu = network(), network().cuda()
    cuda = torch.device("cuda")
    optimizers = [build_optimizer(on_cpu, CONFIG, CPU), build_optimizer(on_gpu, CONFIG, cuda)]
    scales = [LossScale(CPU, enabled=True), LossScale(cuda, enabled=True)]
    for step in range(4):
        for model, optimizer, scale in zip((on_cpu, on_gpu), optimizers, scales, strict=True):
            x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step)).to(
                scale.scale.device
            )
            loss = model(x).square().mean() * 10.0 ** (step % 3 - 1)
            (loss * scale.scale).backward()
            if step == 2:
                next(model.parameters()).grad[0] = float("inf")
            apply_gradients(
                model, optimizer, loss.detach(), scale, clip_norm, NONE_BAD.to(scale.scale.device)
            )
    assert float(scales[1].scale) == float(scales[0].scale) == 65536 / 2
    ours, theirs = everything(on_gpu, optimizers[1]), everything(on_cpu, optimizers[0])
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].cpu(), value, rtol=1e-4, atol=1e-5, msg=name)
