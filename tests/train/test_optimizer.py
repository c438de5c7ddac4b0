"""Compare the schedule with its formula and the average with a loop, and resume an optimizer."""

import copy

import pytest
import torch
from torch import nn

from mt.config import OptimConfig
from mt.train.optimizer import (
    WeightAverage,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    prepare_optimizer,
)

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def toy(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Run the updates `first` to `last`, each with its own data."""
    for step in range(first, last + 1):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("schedule", "warmup", "step", "expected"),
    [
        ("inverse_sqrt", 4000, 1, 5e-4 / 4000),
        ("inverse_sqrt", 4000, 2000, 2.5e-4),
        ("inverse_sqrt", 4000, 4000, 5e-4),
        ("inverse_sqrt", 4000, 16_000, 2.5e-4),
        ("inverse_sqrt", 4000, 400_000, 5e-5),
        ("inverse_sqrt", 0, 1, 5e-4),
        ("inverse_sqrt", 0, 4, 2.5e-4),
        ("inverse_sqrt", 1, 1, 5e-4),
        ("inverse_sqrt", 1, 4, 2.5e-4),
        ("constant", 100, 50, 2.5e-4),
        ("constant", 100, 100, 5e-4),
        ("constant", 100, 10_000, 5e-4),
        ("constant", 0, 1, 5e-4),
    ],
)
def test_the_learning_rate_of_some_updates(
    schedule: str, warmup: int, step: int, expected: float
) -> None:
    config = OptimConfig(lr=5e-4, schedule=schedule, warmup_steps=warmup)
    assert learning_rate(step, config) == pytest.approx(expected, rel=1e-12)


def test_the_inverse_square_root_is_the_papers_formula_at_every_step() -> None:
    """Equation 3 of Vaswani et al. 2017: lr = d_model^-0.5 min(step^-0.5, step warmup^-1.5)."""
    d_model, warmup = 512, 400
    config = OptimConfig(lr=(d_model * warmup) ** -0.5, warmup_steps=warmup)
    for step in range(1, 2001):
        paper = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert learning_rate(step, config) == pytest.approx(paper, rel=1e-12)


def test_weight_decay_applies_only_to_matrices() -> None:
    """With zero gradients, only weight decay changes parameters."""
    model = toy()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5), CPU).step()
    for parameter in model.parameters():
        assert torch.allclose(parameter, torch.tensor(0.95 if parameter.ndim >= 2 else 1.0))


def test_every_parameter_is_optimized_once_with_the_settings_given() -> None:
    model = toy()
    optimizer = build_optimizer(model, OptimConfig(lr=0.2, betas=[0.8, 0.9], eps=1e-7), CPU)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.2, (0.8, 0.9), 1e-7)


def test_updates_follow_the_formula_of_adam() -> None:
    """Compare three updates with algorithm 1 of Kingma and Ba 2015, computed in float64."""
    parameter = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    model = nn.ParameterList([parameter])
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, betas=[0.9, 0.98], eps=1e-9), CPU)
    expected, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for step, gradient in enumerate([[0.5, -1.0], [0.1, 3.0], [-2.0, 0.0]], 1):
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.98 * v[i] + 0.02 * g * g
            expected[i] -= (
                0.1 * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.98**step)) ** 0.5 + 1e-9)
            )
        assert parameter[0].tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_weight_average_equals_that_of_a_plain_loop(decay: float) -> None:
    model = toy()
    optimizer = build_optimizer(model, OptimConfig(lr=0.05), CPU)
    average = WeightAverage(model, decay)
    expected = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for step in range(1, 31):
        take_steps(model, optimizer, step, step)
        average.update(model, step)
        share = min(decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            expected[name] = share * expected[name] + (1 - share) * parameter.detach().double()
    for name, weight in average.weights.items():
        torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, dict(model.named_parameters())[name])


def test_the_average_does_not_change_the_model() -> None:
    model = toy()
    before = copy.deepcopy(model.state_dict())
    average = WeightAverage(model, 0.5)
    take_steps(model, build_optimizer(model, OptimConfig(lr=0.05), CPU), 1, 2)
    assert all(torch.equal(average.weights[name], before[name]) for name in before)
    after = copy.deepcopy(model.state_dict())
    average.update(model, 1)
    assert all(torch.equal(weight, after[name]) for name, weight in model.state_dict().items())


def test_an_optimizer_resumes_bit_for_bit_from_its_saved_tensors() -> None:
    config = OptimConfig(lr=0.05, weight_decay=0.1)
    straight = toy()
    take_steps(straight, build_optimizer(straight, config, CPU), 1, 8)

    model = toy()
    optimizer = build_optimizer(model, config, CPU)
    take_steps(model, optimizer, 1, 4)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model).items()}
    resumed = copy.deepcopy(model)
    fresh = build_optimizer(resumed, config, CPU)
    prepare_optimizer(fresh)
    for name, tensor in optimizer_tensors(fresh, resumed).items():
        tensor.copy_(tensors.pop(name))
    assert not tensors
    take_steps(resumed, fresh, 5, 8)
    assert all(
        torch.equal(weight, straight.state_dict()[name])
        for name, weight in resumed.state_dict().items()
    )

    without_state = copy.deepcopy(model)
    take_steps(without_state, build_optimizer(without_state, config, CPU), 5, 8)
    assert not torch.equal(
        without_state[0].weight, straight[0].weight
    )  # without the optimizer state, the weights differ


def test_saved_tensors_are_named_after_moment_and_parameter() -> None:
    model = toy()
    optimizer = build_optimizer(model, OptimConfig(), CPU)
    assert optimizer_tensors(optimizer, model) == {}
    take_steps(model, optimizer, 1, 1)
    names = {
        f"{key}.{name}"
        for key in ("step", "exp_avg", "exp_avg_sq")
        for name, _ in model.named_parameters()
    }
    assert set(optimizer_tensors(optimizer, model)) == names
