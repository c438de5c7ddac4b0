"""Linear layers for translating: their weights are packed once, in the chosen precision."""

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-30  # the smallest scale, to avoid division by zero
Linear = Callable[[Tensor], Tensor]  # [rows, in] to [rows, out]


def pack_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Linear:
    """Return the layer x W^T + b for `weight` [out, in] and `bias` [out].

    It computes in `dtype`: fp32, bf16, fp16 or int8.
    """
    return Int8Linear(weight, bias) if dtype == torch.int8 else DenseLinear(weight, bias, dtype)


class DenseLinear:
    """A floating-point layer. Its output always has the dtype of its weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype).t().contiguous()  # [in, out] is faster for few rows on a CPU
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        return (
            torch.mm(x, self.weight)
            if self.bias is None
            else torch.addmm(self.bias, x, self.weight)
        )


class Int8Linear:
    """An int8 layer with fp32 input and output.

    Weights have 8 bits and one scale per output. Inputs have 7 bits and one scale per row, which
    depends only on that row, so the result for a row does not depend on the other rows.

    Inputs have only 7 bits so that all processors give the same results: processors without VNNI
    add two products in 16 bits, in which 2 x 127 x 127 fits.
    """

    LEVELS = 63  # inputs are rounded to -63 to 63, and stored as 1 to 127

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.float().abs().amax(dim=1).clamp_min(TINY) / 127  # [out]
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.scale, self.zero_points = scale, torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.float()

    def __getstate__(self) -> dict[str, Tensor | None]:
        """Return the state for another process, with the weights unpacked."""
        return {**self.__dict__, "weight": self.weight.to_dense().t().contiguous()}

    def __setstate__(self, state: dict[str, Tensor]) -> None:
        """Restore the state and pack the weights again."""
        self.__dict__ = {**state, "weight": torch.ops.onednn.qlinear_prepack(state["weight"], None)}

    def __call__(self, x: Tensor) -> Tensor:
        largest = torch.maximum(
            x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True)
        ).clamp_min_(TINY)
        # The conversion truncates, so 0.5 is added to round. Converting to int8 and viewing the
        # result as uint8 is much faster than converting to uint8.
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
