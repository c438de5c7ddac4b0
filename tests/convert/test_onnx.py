"""Check that our search gives the same translations with ONNX exports run by onnxruntime."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.convert.export import verify_export
from mt.convert.onnx import OnnxModel, export_onnx
from mt.data.tokenizer import Tokenizer
from mt.errors import ExportError
from tests.conftest import run_mt, sample_lines
from tests.convert.folders import model_folder

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("norm", "activation", "tie_embeddings"), [("pre", "gelu", "all"), ("post", "silu", "none")]
)
def test_onnxruntime_gives_our_translations_with_our_scores(
    tmp_path: Path, tokenizer: Tokenizer, norm: str, activation: str, tie_embeddings: str
) -> None:
    options = {
        "norm": norm,
        "activation": activation,
        "tie_embeddings": tie_embeddings,
        "output_bias": norm == "post",
    }
    loaded = model_folder(tmp_path / "model", tokenizer, **options)
    export_onnx(loaded, tmp_path / "out")
    for beam_size in (1, 4):
        parity = verify_export(
            "onnx", loaded, tmp_path / "out", sample_lines("test", "de", 40), beam_size
        )
        assert parity.num_lines == 40
        assert parity.differences == []
        assert parity.score_gap < 1e-4


def test_each_step_equals_the_model_for_sizes_other_than_those_of_the_example_inputs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Compare with the model without a cache.

    The inputs have padding, hypotheses are reordered, and sentences are dropped.
    """
    loaded = model_folder(tmp_path / "model", tokenizer)
    export_onnx(loaded, tmp_path / "out")
    model, runtime = loaded.model, OnnxModel(tmp_path / "out", 1)
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(4, 400, (5, 13), generator=generator)
    mask = torch.arange(13) < torch.tensor([13, 2, 7, 13, 1])[:, None]
    state = runtime.initial_state(src, mask)
    prefix = torch.full((5, 2, 0), 0)
    state.reorder(torch.zeros(5, 2, dtype=torch.long))
    for step in range(6):
        tokens = torch.randint(4, 400, prefix.shape[:2], generator=generator)
        prefix = torch.cat([prefix, tokens[:, :, None]], dim=2)
        log_probs = runtime.step(tokens, state)
        with torch.no_grad():
            whole = [
                model.project(model(src, mask, prefix[:, beam])[:, -1]).log_softmax(dim=-1)
                for beam in range(prefix.shape[1])
            ]
        torch.testing.assert_close(log_probs, torch.stack(whole, dim=1), rtol=1e-4, atol=1e-4)
        order = torch.randint(0, prefix.shape[1], (len(src), 3), generator=generator)
        prefix = prefix.gather(1, order[:, :, None].expand(-1, -1, prefix.shape[2]))
        state.reorder(order)
        if step == 2:
            kept = torch.tensor([4, 1, 2])
            state.keep(kept)
            src, mask, prefix = src[kept], mask[kept], prefix[kept]


def test_the_command_exports_and_describes_the_graphs(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model_folder(tmp_path / "model", tokenizer)
    result = run_mt(
        "export", tmp_path / "model", "-o", tmp_path / "out", "--to", "onnx", "--lines", "20"
    )
    assert result.returncode == 0, result.stderr
    assert "for onnxruntime, weights in float32" in result.stdout
    assert "20 of 20 translations identical" in result.stdout
    assert "torchvision" not in result.stderr
    description = json.loads((tmp_path / "out/onnx.json").read_text(encoding="utf-8"))
    names = ("bos_id", "eos_id", "decoder_layers", "num_heads")
    assert tuple(description[name] for name in names) == (2, 3, 1, 2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "onnx.json",
        "tokenizer",
    ]


def test_a_missing_package_is_named(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    loaded = model_folder(tmp_path / "model", tokenizer)
    real = importlib.import_module

    def without(name: str, *args: Any) -> Any:
        if name in {"onnx", "onnxscript", "onnxruntime"}:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ExportError, match=r"install mt-forge\[onnx\]"):
        export_onnx(loaded, tmp_path / "out")
    with pytest.raises(ExportError, match=r"package onnxruntime; install"):
        OnnxModel(tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
