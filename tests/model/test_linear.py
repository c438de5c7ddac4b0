"""Compare packed linear layers with PyTorch's, and with 8-bit arithmetic written out."""

import pytest
import torch
from torch.nn import functional as F

from mt.model.linear import pack_linear

pytestmark = pytest.mark.usefixtures("one_thread")


def operands(
    rows: int, inputs: int = 96, outputs: int = 40
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=draw) for shape in shapes)
    # The rows have very different magnitudes.
    return x * torch.logspace(-3, 3, rows)[:, None], weight, bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_dense_layer_is_torchs_linear(dtype: torch.dtype, with_bias: bool) -> None:
    x, weight, bias = operands(7)
    ours = pack_linear(weight, bias if with_bias else None, dtype)(x)
    theirs = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype) if with_bias else None)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_an_int8_layer_is_its_arithmetic_written_out(rows: int, with_bias: bool) -> None:
    x, weight, bias = operands(rows)
    row_scale, out_scale = x.abs().amax(1, keepdim=True) / 63, weight.abs().amax(1) / 127
    levels = (x / row_scale + 0.5).floor().double(), (weight / out_scale[:, None]).round().double()
    assert levels[0].abs().max() == 63
    assert levels[1].abs().max() == 127
    expected = (levels[0] @ levels[1].t()) * row_scale * out_scale
    expected = (expected + bias if with_bias else expected).float()
    ours = pack_linear(weight, bias if with_bias else None, torch.int8)(x)
    off = (
        ours - expected
    ).abs() / row_scale  # a value between two levels may be rounded up or down
    assert off.max() < out_scale.max() * 127 * 1.01
    assert (off > 1e-3).float().mean() < 0.05
    exact = x @ weight.t() + (bias if with_bias else 0)
    error, size = (ours - exact).square().mean(1).sqrt(), (x @ weight.t()).square().mean(1).sqrt()
    assert ((error / size) < 0.03).all()


def test_an_int8_row_does_not_see_its_neighbours() -> None:
    x, weight, bias = operands(64)
    layer = pack_linear(weight, bias, torch.int8)
    together = layer(x)
    for i in (0, 31, 63):
        assert torch.equal(layer(x[i : i + 1])[0], together[i])


def test_int8_sums_do_not_overflow_where_all_products_are_the_largest() -> None:
    x, weight = torch.ones(3, 512), torch.ones(8, 512)
    torch.testing.assert_close(pack_linear(weight, None, torch.int8)(x), torch.full((3, 8), 512.0))
    torch.testing.assert_close(
        pack_linear(-weight, None, torch.int8)(x), torch.full((3, 8), -512.0)
    )


def test_a_row_of_zeros_gives_the_bias() -> None:
    _, weight, bias = operands(1)
    assert torch.equal(
        pack_linear(weight, bias, torch.int8)(torch.zeros(2, 96)), bias.expand(2, -1)
    )
