"""Test dropout, random bytes, embeddings, sinusoids and activations."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from mt.config import ModelConfig
from mt.model.layers import ACTIVATIONS, Activation, Dropout, Embedding, random_bytes, sinusoids


@pytest.fixture(autouse=True)
def _seeded(one_thread: None) -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("d_model", [2, 8, 512])
def test_sinusoids_are_the_papers_formula_sines_first_then_cosines(d_model: int) -> None:
    table = sinusoids(40, d_model)
    assert table.dtype == torch.float32
    for position in range(40):
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            assert float(table[position, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, d_model // 2 + i]) == pytest.approx(
                math.cos(angle), abs=1e-6
            )


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_expectation(p: float) -> None:
    n = 400_000
    rounded = round(p * 256) / 256
    out = Dropout(p).train()(torch.ones(n))
    share = float((out == 0).float().mean())
    assert abs(share - rounded) < 6 * math.sqrt(rounded * (1 - rounded) / n)
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - rounded)))
    assert abs(float(out.mean()) - 1) < 6 * math.sqrt(rounded / (1 - rounded) / n)


@pytest.mark.parametrize(
    ("p", "scale"),
    [(0.1, 256 / 230), (0.25, 256 / 192), (0.3, 256 / 179), (1 / 256, 256 / 255), (0.001, 1.0)],
)
def test_p_is_rounded_to_the_nearest_256th_and_the_scale_is_the_rounded_ones(
    p: float, scale: float
) -> None:
    assert float(Dropout(p).train()(torch.ones(100_000)).max()) == pytest.approx(scale, rel=1e-6)


def test_the_highest_p_the_schema_allows_is_still_a_number() -> None:
    out = Dropout(0.999).train()(torch.ones(100_000))
    assert out.isfinite().all()
    assert float((out == 0).float().mean()) > 0.99


def test_dropout_is_the_identity_in_evaluation_and_at_zero() -> None:
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


def test_dropout_gives_the_gradient_of_what_it_kept() -> None:
    x = torch.randn(1000, requires_grad=True)
    out = Dropout(0.3).train()(x)
    out.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad * x, out)


def test_dropout_is_reproducible_from_torchs_seed_and_differs_between_calls() -> None:
    drop, x = Dropout(0.5).train(), torch.ones(7, 13)
    torch.manual_seed(5)
    first, second = drop(x), drop(x)
    torch.manual_seed(5)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_has_the_shape_and_type_of_its_input_and_is_zeros_and_ones(
    dtype: torch.dtype,
) -> None:
    x = torch.randn(50, 7, dtype=dtype)
    drop = Dropout(0.25).train()
    mask = drop.mask(x)
    assert (mask.shape, mask.dtype) == (x.shape, dtype)
    assert mask.unique().tolist() == [0.0, 1.0]
    assert drop(x).dtype == dtype


def from_seed(draw: Callable[[], torch.Tensor], seed: int = 5) -> torch.Tensor:
    torch.manual_seed(seed)
    return draw()


def test_added_dropout_is_the_residual_plus_dropout_of_the_same_draw() -> None:
    drop = Dropout(0.3).train()
    residual, x = (torch.randn(40, 9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fused, plain = from_seed(lambda: drop.add(residual, x)), from_seed(lambda: residual + drop(x))
    torch.testing.assert_close(fused, plain, rtol=1e-14, atol=1e-14)
    direction = torch.randn_like(fused)
    gradients = [
        torch.autograd.grad((out * direction).sum(), (residual, x)) for out in (fused, plain)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    share = float((gradients[0][1] == 0).double().mean())
    assert abs(share - 0.3) < 6 * math.sqrt(0.3 * 0.7 / x.numel())


def test_added_dropout_is_a_plain_sum_in_evaluation_and_at_zero() -> None:
    residual, x = torch.randn(2, 30)
    assert torch.equal(Dropout(0.5).eval().add(residual, x), residual + x)
    assert torch.equal(Dropout(0.0).train().add(residual, x), residual + x)


def test_a_half_precision_block_leaves_the_residual_stream_in_fp32() -> None:
    """Check that the sum is in fp32, as under autocast. bf16 would lose a 256th of the sum."""
    drop = Dropout(0.5).train()  # bf16 represents the scale of 2 exactly
    residual, x = torch.randn(1000), torch.randn(1000).bfloat16()
    out = from_seed(lambda: drop.add(residual, x))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, residual + from_seed(lambda: drop(x)).float())


def test_random_bytes_are_uniform_in_each_of_the_eight_places_of_a_draw() -> None:
    """Check the chi-square statistic of 256 bins: its mean is 255, its standard deviation 22.6.

    The bounds are six standard deviations from the mean.
    """
    lanes = random_bytes(8 * 100_000).view(-1, 8)
    for lane in lanes.T:
        counts = torch.bincount(lane.int(), minlength=256).double()
        assert 120 < float(((counts - 390.625) ** 2 / 390.625).sum()) < 391


def test_neighbouring_random_bytes_are_independent() -> None:
    lanes = random_bytes(8 * 100_000).view(-1, 8).double()
    correlations = torch.corrcoef(lanes.T) - torch.eye(8)
    assert float(correlations.abs().max()) < 6 / math.sqrt(100_000)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_as_many_random_bytes_as_asked_for(count: int) -> None:
    drawn = random_bytes(count)
    assert (drawn.shape, drawn.dtype) == ((count,), torch.uint8)


def embedding(dropout: float = 0.0) -> Embedding:
    block = Embedding(11, 16, dropout)
    torch.nn.init.normal_(block.weight)
    return block


@torch.no_grad()
def test_an_embedding_is_the_tokens_row_times_root_d_model_plus_its_position() -> None:
    block = embedding()
    tokens = torch.tensor([[3, 1, 4], [10, 0, 3]])
    out = block(tokens, torch.arange(3).expand(2, 3), 3)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close(
                out[b, t], 4 * block.weight[tokens[b, t]] + sinusoids(3, 16)[t]
            )


@torch.no_grad()
def test_positions_may_be_given_for_each_row() -> None:
    block = embedding()
    out = block(torch.tensor([[3], [3], [4]]), torch.tensor([[0], [2], [299]]), 300)
    whole = block(torch.tensor([[3, 3, 3]]), torch.arange(3)[None], 3)
    torch.testing.assert_close(out[:2, 0], whole[0, [0, 2]])
    torch.testing.assert_close(out[2, 0], 4 * block.weight[4] + sinusoids(300, 16)[299])


@torch.no_grad()
def test_the_table_of_positions_grows_without_changing() -> None:
    block = embedding()
    short = block(torch.full((1, 5), 2), torch.arange(5)[None], 5)
    long = block(torch.full((1, 1500), 2), torch.arange(1500)[None], 1500)
    assert torch.equal(long[:, :5], short)
    torch.testing.assert_close(long[0, 1499], 4 * block.weight[2] + sinusoids(1500, 16)[1499])


def test_positions_first_made_while_decoding_serve_training_too() -> None:
    block = embedding()
    with torch.inference_mode():
        block(torch.full((1, 5), 2), torch.arange(5)[None], 5)
    block(torch.full((1, 5), 2), torch.arange(5)[None], 5).square().sum().backward()
    assert block.weight.grad is not None


def test_positions_are_no_part_of_the_weights() -> None:
    block = embedding()
    block(torch.tensor([[1]]), torch.tensor([[0]]), 1)
    assert list(block.state_dict()) == ["weight"]


def test_embedding_dropout_covers_positions_too() -> None:
    block = embedding(dropout=0.5).train()
    torch.nn.init.zeros_(block.weight)
    cosines = block(torch.zeros(200, dtype=torch.int64), torch.zeros(200, dtype=torch.int64), 1)[
        :, 8:
    ]  # at position 0 all cosines are 1
    assert set(cosines.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: max(x, 0.0)),
        ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
        ("silu", lambda x: x / (1 + math.exp(-x))),
    ],
)
def test_activations_are_their_formulas(name: str, formula: Callable[[float], float]) -> None:
    for x in (-3.0, -0.5, 0.0, 0.7, 2.0):
        assert float(ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64))) == pytest.approx(
            formula(x), abs=1e-12
        )


def test_every_activation_of_the_schema_is_there() -> None:
    for name in ModelConfig.model_json_schema()["properties"]["activation"]["enum"]:
        assert callable(ACTIVATIONS[name])
    assert ACTIVATIONS["relu"] is F.relu


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.25, 0.3, 0.9])
def test_dropped_relu_and_its_gradient_are_those_of_the_plain_expression(
    p: float, dtype: torch.dtype
) -> None:
    x = torch.randn(60, 17, dtype=dtype, requires_grad=True)
    with torch.no_grad():
        x[0] = 0.0  # there is no gradient at zero
    block = Activation("relu", p).train()
    ours = from_seed(lambda: block(x * 1))
    drop = Dropout(p).train()
    mask = from_seed(lambda: drop.mask(x))
    plain = F.relu(x) * mask * drop.scale
    assert torch.equal(ours, plain)
    assert float(ours.detach().max()) > 0
    direction = torch.randn_like(x)
    (our_grad,), (plain_grad,) = (
        torch.autograd.grad((out * direction).sum(), x) for out in (ours, plain)
    )
    torch.testing.assert_close(our_grad, plain_grad, rtol=1e-6, atol=0)
    assert our_grad[0].eq(0).all()


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_dropout_in_bf16_keeps_the_expectation(p: float) -> None:
    """Use a scale that bf16 cannot represent (256 / 230 would become 1.1094).

    Values near 1 must therefore be scaled before they are rounded.
    """
    n = 1 << 20
    x = torch.linspace(0.5, 2, n).bfloat16()
    drop, bound = Dropout(p).train(), 6 * 1.4 * math.sqrt(p / (1 - p) / n)
    for out in (drop(x), drop.add(torch.zeros(n), x), Activation("relu", p).train()(x.clone())):
        assert abs(float(out.double().mean()) - float(x.double().mean())) < bound


@pytest.mark.parametrize(("p", "scale"), [(0.1, 256 / 230), (0.3, 256 / 179), (0.001, 1.0)])
def test_dropped_relu_scales_by_the_rounded_p_forward_and_backward(p: float, scale: float) -> None:
    x = torch.ones(5000, requires_grad=True)
    out = Activation("relu", p).train()(x * 1)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out)  # they are equal because every input is 1
    assert float(out.detach().max()) == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_an_activation_drops_nothing_in_evaluation_and_at_zero(name: str) -> None:
    x = torch.randn(200)
    expected = ACTIVATIONS[name](x)
    assert torch.equal(Activation(name, 0.5).eval()(x.clone()), expected)
    assert torch.equal(Activation(name, 0.0).train()(x.clone()), expected)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("value", [1.3, -0.8])
def test_a_dropped_activation_keeps_its_expectation(name: str, value: float) -> None:
    n, dropped = 100_000, round(0.3 * 256) / 256
    expected = float(ACTIVATIONS[name](torch.tensor(value)))
    out = Activation(name, 0.3).train()(torch.full((n,), value))
    assert abs(float(out.double().mean()) - expected) <= 6 * abs(expected) * math.sqrt(
        dropped / (1 - dropped) / n
    )
    if expected:
        share = float((out == 0).double().mean())
        assert abs(share - dropped) < 6 * math.sqrt(dropped * (1 - dropped) / n)


def test_an_activation_under_gradient_checking_agrees_with_finite_differences() -> None:
    """Draw the same mask in each evaluation, so that gradcheck sees one function."""
    x = torch.randn(4, 5, dtype=torch.float64)
    x[x.abs() < 0.01] = 0.5  # stay away from relu's kink
    for name in ACTIVATIONS:
        block = Activation(name, 0.4).train()
        assert torch.autograd.gradcheck(
            lambda x, block=block: from_seed(lambda: block(x * 1)), x.requires_grad_()
        )
