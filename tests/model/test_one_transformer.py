"""Check that training, translating, attention maps and exports run the same layer classes."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mt.convert.onnx import _Decoder, _Encoder
from mt.decode.steps import EagerModel
from mt.model.attention import MultiHeadAttention
from mt.model.layers import Activation, Dropout
from mt.model.transformer import DecoderLayer, EncoderLayer, Transformer, for_translating
from mt.report.attention import attention_maps
from tests.model.small import small, sources

ROOT = Path(__file__).parents[2]


def train(model: Transformer, src: Tensor, mask: Tensor) -> None:
    model.train()(src, mask, src).sum().backward()


def translate(model: Transformer, src: Tensor, mask: Tensor) -> None:
    ready = EagerModel(model)
    ready.step(torch.full((len(src), 2), 5), ready.initial_state(src, mask))


def look(model: Transformer, src: Tensor, mask: Tensor) -> None:
    attention_maps(model, src[0].tolist(), src[0].tolist())


def export(model: Transformer, src: Tensor, mask: Tensor) -> None:
    ready = for_translating(model)
    memory = _Encoder(ready)(src, mask)
    cache = torch.zeros(3, len(src), 2, 4, 0, 4)
    _Decoder(ready)(torch.full((len(src), 2), 5), cache, cache, *memory, mask)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_whatever_is_done_runs_the_same_layers(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out dropout, and linear layers, which translating replaces with packed ones."""
    classes = {type(module) for module in small(norm).modules()}
    classes -= {nn.Linear, nn.ModuleList, Transformer, nn.Identity, Dropout}
    assert classes >= {EncoderLayer, DecoderLayer, MultiHeadAttention, Activation, nn.LayerNorm}
    called: set[type] = set()

    def recorded(kind: type, forward: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            called.add(kind)
            return forward(*args, **options)

        return call

    for kind in classes:
        original: Any = kind.forward  # type: ignore[attr-defined]
        monkeypatch.setattr(kind, "forward", recorded(kind, original))
    for work in (train, translate, look, export):
        called.clear()
        with torch.inference_mode(work is not train):
            work(small(norm), *sources(7, 7))
        assert called == classes, work.__name__


def test_a_translating_model_is_made_of_the_same_classes() -> None:
    model = small()
    ready = for_translating(model)
    kinds = [
        {
            name: type(module)
            for name, module in each.named_modules()
            if not isinstance(module, nn.Linear)
        }
        for each in (model, ready)
    ]
    assert kinds[0] == kinds[1]
    assert not [module for module in ready.modules() if isinstance(module, nn.Linear)]
    shared = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in ready.parameters()} <= shared


@pytest.mark.parametrize("name", ["residual", "feed_forward", "MultiHeadAttention"])
def test_each_part_is_defined_once(name: str) -> None:
    found = [
        path
        for path in (ROOT / "mt").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.strip("_") == name
    ]
    assert len(found) == 1
