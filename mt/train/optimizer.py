"""The optimizer, the learning rate schedule, and the moving average of the weights."""

import torch
from torch import Tensor, nn

from mt.config import OptimConfig
from mt.runtime.shards import local_shard


def build_optimizer(
    model: nn.Module, config: OptimConfig, device: torch.device
) -> torch.optim.AdamW:
    """Build a fused AdamW (Loshchilov and Hutter 2019) with weight decay only for matrices."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(beta1, beta2),
        eps=config.eps,
        fused=device.type in {"cpu", "cuda"},
    )


def learning_rate(step: int, config: OptimConfig) -> float:
    """Return the learning rate of update `step`, which counts from 1.

    It rises linearly during warmup. After that, it is constant, or falls as lr x sqrt(warmup /
    step) (Vaswani et al. 2017, section 5.3).
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    return config.lr * (max(config.warmup_steps, 1) / step) ** 0.5


class WeightAverage:
    """Exponential moving average of the weights (Polyak averaging), updated after each update."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after update `step`.

        Early updates use a smaller decay, so that the initial weights soon have no influence.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local_shard(average) for average in self.weights.values()]
        torch._foreach_lerp_(
            averages, [local_shard(p.detach()) for p in model.parameters()], 1 - decay
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `exp_avg.<parameter name>` and so on.

    This is the form in which a safetensors file stores the state.
    """
    return {
        f"{key}.{name}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def prepare_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Create the state that AdamW would create in its first step, to load saved tensors into it."""
    for parameter in (
        p for group in optimizer.param_groups for p in group["params"] if p.requires_grad
    ):
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
