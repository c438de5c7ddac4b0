"""Check that each export of a trained model gives the same translations in its own engine."""

from pathlib import Path

import pytest
import torch

from mt.convert.export import Target, verify_export, write_export
from mt.decode.loading import load_model
from tests.conftest import sample_lines

ENGINES: dict[Target, str] = {
    "ctranslate2": "ctranslate2",
    "pegasus": "transformers",
    "onnx": "onnxruntime",
}


@pytest.mark.parametrize("to", ENGINES)
def test_a_trained_model_gives_the_same_translations_in_every_engine(
    trained_run: Path, tmp_path: Path, to: Target
) -> None:
    pytest.importorskip(ENGINES[to])
    torch.set_num_threads(1)
    loaded = load_model(trained_run, torch.device("cpu"))
    assert loaded.config.model.norm == "pre"
    write_export(to, loaded, tmp_path / "out")
    for beam_size in (1, 5):
        parity = verify_export(
            to, loaded, tmp_path / "out", sample_lines("test", "de", 30), beam_size
        )
        assert parity.num_lines == 30
        assert parity.holds, parity
