"""Dropout, random bytes, embeddings and sinusoids."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from mt.config import ModelConfig
from mt.model.layers import ACTIVATIONS, Dropout, Embedding, random_bytes, sinusoids


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)


@pytest.mark.parametrize("d_model", [2, 8, 512])
def test_sinusoids_are_the_papers_formula_sines_first_then_cosines(d_model: int) -> None:
    table = sinusoids(40, d_model)
    assert table.dtype == torch.float32
    for position in range(40):
        for i in range(d_model // 2):
            angle = position / 10_000 ** (2 * i / d_model)
            assert float(table[position, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(table[position, d_model // 2 + i]) == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_expectation(p: float) -> None:
    n = 400_000
    rounded = round(p * 256) / 256
    out = Dropout(p).train()(torch.ones(n))
    share = float((out == 0).float().mean())
    assert abs(share - rounded) < 6 * math.sqrt(rounded * (1 - rounded) / n)
    assert torch.allclose(out[out != 0], torch.tensor(1 / (1 - rounded)))
    assert abs(float(out.mean()) - 1) < 6 * math.sqrt(rounded / (1 - rounded) / n)


@pytest.mark.parametrize(("p", "scale"), [(0.1, 256 / 230), (0.25, 256 / 192), (0.3, 256 / 179), (1 / 256, 256 / 255), (0.001, 1.0)])
def test_p_is_rounded_to_the_nearest_256th_and_the_scale_is_the_rounded_ones(p: float, scale: float) -> None:
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


def test_random_bytes_are_uniform_in_each_of_the_eight_places_of_a_draw() -> None:
    """Chi-square of 256 bins, in mean 255 with a standard deviation of 22.6; the bounds are six of these away."""
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
            torch.testing.assert_close(out[b, t], 4 * block.weight[tokens[b, t]] + sinusoids(3, 16)[t])


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
    cosines = block(torch.zeros(200, dtype=torch.int64), torch.zeros(200, dtype=torch.int64), 1)[:, 8:]  # at position 0 all are 1
    assert set(cosines.flatten().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(("name", "formula"), [
    ("relu", lambda x: max(x, 0.0)),
    ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    ("silu", lambda x: x / (1 + math.exp(-x))),
])
def test_activations_are_their_formulas(name: str, formula: Callable[[float], float]) -> None:
    for x in (-3.0, -0.5, 0.0, 0.7, 2.0):
        assert float(ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64))) == pytest.approx(formula(x), abs=1e-12)


def test_every_activation_of_the_schema_is_there() -> None:
    for name in ModelConfig.model_json_schema()["properties"]["activation"]["enum"]:
        assert callable(ACTIVATIONS[name])
    assert ACTIVATIONS["relu"] is F.relu
