"""The optimizer, its schedule as a function of the step, and the moving average of the weights."""

import torch
from torch import Tensor, nn

from mt.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused; weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps, fused=device.type in {"cpu", "cuda"})


def learning_rate(step: int, config: OptimConfig) -> float:
    """Learning rate of update `step` (from 1): a linear rise, then constant or lr x sqrt(warmup / step) (Vaswani et al. 2017, 5.3)."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * (max(config.warmup_steps, 1) / step) ** 0.5


class WeightAverage:
    """Exponential moving average of the weights (Polyak averaging), taken after each update."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after update `step`; early updates use a smaller decay, so that the start is soon forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = list(self.weights.values())
        torch._foreach_lerp_(averages, [p.detach() for p in model.parameters()], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return dict(self.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over averaged weights."""
        for name, weight in self.weights.items():
            weight.copy_(state[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors `<what>.<parameter name>`, as a safetensors file holds it."""
    return {
        f"{what}.{name}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for what, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` gave. Raises `ValueError` for a tensor that fits no parameter."""
    by_name = dict(model.named_parameters())
    for key, tensor in tensors.items():
        what, _, name = key.partition(".")
        parameter = by_name.get(name)
        if parameter is None or tensor.shape not in (parameter.shape, torch.Size()):
            raise ValueError(f"{key} {list(tensor.shape)} fits no parameter")
        optimizer.state[parameter][what] = tensor.to(torch.float32 if what == "step" else parameter.dtype).to(parameter.device)
