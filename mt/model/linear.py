"""Linear layers as translating uses them: packed once, in the precision of the computation."""

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-30  # in place of a scale of zero
Linear = Callable[[Tensor], Tensor]  # [rows, in] to [rows, out]


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """The layer x W^T + b of `weight` [out, in] and `bias` [out], computed in `dtype`: fp32, bf16,
    fp16, or int8.
    """
    return Int8Linear(weight, bias) if dtype == torch.int8 else DenseLinear(weight, bias, dtype)


class DenseLinear:
    """In floating point; gives `dtype`, whatever comes in."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = (
            weight.to(dtype).t().contiguous()
        )  # the faster way round for a few rows on a CPU
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return (
            torch.mm(x, self.weight)
            if self.bias is None
            else torch.addmm(self.bias, x, self.weight)
        )


class Int8Linear:
    """Weights of 8 bits scaled per output, inputs of 7 bits scaled per row, exact sums of their
    products; fp32 in and out.

    A row's scale comes from that row alone, so its neighbours make no difference. The seventh bit
    is the most that processors without VNNI add up without overflow: on them two products share a
    sum of 16 bits (2 x 127 x 127 fits), and all others are to agree.
    """

    LEVELS = 63  # inputs become -63 to 63, and stand as 1 to 127 around 64

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.float().abs().amax(dim=1).clamp_min(TINY) / 127  # [out]
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.scale, self.zero_points = scale, torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.float()

    def __getstate__(self) -> dict[str, Tensor | None]:
        """For another process: the weights as they were before oneDNN packed them."""
        return {**self.__dict__, "weight": self.weight.to_dense().t().contiguous()}

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        """Pack the weights again."""
        self.__dict__ = {**state, "weight": torch.ops.onednn.qlinear_prepack(state["weight"], None)}

    def __call__(self, x: Tensor) -> Tensor:
        largest = torch.maximum(
            x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True)
        ).clamp_min_(TINY)
        # The half makes cutting off decimals a rounding; PyTorch converts to signed bytes much
        # faster than to unsigned ones.
        rounded = (
            (x * (self.LEVELS / largest)).add_(self.LEVELS + 1.5).to(torch.int8).view(torch.uint8)
        )
        product = torch.ops.onednn.qlinear_pointwise(
            rounded,
            1.0,
            self.LEVELS + 1,
            self.weight,
            self.scale,
            self.zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        scale = largest / self.LEVELS
        return (
            product.mul_(scale) if self.bias is None else torch.addcmul(self.bias, product, scale)
        )
