"""Check that CTranslate2 gives the same translations and scores with our exports."""

from pathlib import Path

import pytest
import torch

from mt.convert import export as workflow
from mt.convert.ctranslate2 import CTranslate2Engine, export_ctranslate2
from mt.convert.export import export_and_verify
from mt.convert.parity import MTEngine, compare
from mt.data.tokenizer import Tokenizer
from mt.decode.loading import LoadedModel
from mt.decode.translator import Translator
from mt.errors import ConfigError, ExportError
from mt.runtime.device import Compute
from tests.conftest import run_mt, sample_lines
from tests.convert.folders import hide_package, model_folder

ctranslate2 = pytest.importorskip("ctranslate2")
FP32 = Compute(torch.device("cpu"), torch.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("norm", "activation", "tie_embeddings"),
    [
        ("pre", "relu", "all"),
        ("post", "relu", "none"),
        ("pre", "gelu", "decoder"),
        ("post", "silu", "all"),
    ],
)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_ctranslate2_gives_our_translations_with_our_scores(
    tmp_path: Path,
    tokenizer: Tokenizer,
    beam_size: int,
    norm: str,
    activation: str,
    tie_embeddings: str,
) -> None:
    options = {
        "norm": norm,
        "activation": activation,
        "tie_embeddings": tie_embeddings,
        "output_bias": norm == "post",
    }
    loaded = model_folder(tmp_path / "model", tokenizer, **options)
    export_ctranslate2(loaded, tmp_path / "out")
    decode = loaded.config.decode.model_copy(update={"beam_size": beam_size})
    parity = compare(
        Translator(loaded.model, loaded.tokenizer, decode, FP32),
        CTranslate2Engine(tmp_path / "out", loaded.tokenizer, decode, 1, 1),
        sample_lines("test", "de", 60),
    )
    assert parity.num_lines == 60
    assert parity.differences == []
    assert parity.score_gap < 1e-4


def test_both_engines_give_a_translation_the_same_score(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    loaded = model_folder(tmp_path / "model", tokenizer)
    export_ctranslate2(loaded, tmp_path / "out")
    engine = MTEngine(Translator(loaded.model, loaded.tokenizer, loaded.config.decode, FP32))
    other = CTranslate2Engine(tmp_path / "out", loaded.tokenizer, loaded.config.decode, 1, 1)
    source = loaded.tokenizer.encode_src(sample_lines("test", "de", 1))[0]
    for target in ([5, 9, 100], [7]):
        assert other.score(source, target) == pytest.approx(engine.score(source, target), abs=1e-4)


def test_an_int8_export_is_smaller_and_does_not_change_the_model(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    loaded = model_folder(tmp_path / "model", tokenizer)
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    for name, quantization in (("exact", None), ("small", "int8")):
        export_ctranslate2(loaded, tmp_path / name, quantization)
    assert all(
        torch.equal(weight, before[name]) for name, weight in loaded.model.state_dict().items()
    )
    sizes = [(tmp_path / name / "model.bin").stat().st_size for name in ("small", "exact")]
    assert sizes[0] < sizes[1]


def test_the_exported_folder_is_all_that_ctranslate2_needs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    import sentencepiece

    loaded = model_folder(tmp_path / "model", tokenizer)
    export_ctranslate2(loaded, tmp_path / "out")
    pieces, target = (
        sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / name))
        for name in ("src.spm", "tgt.spm")
    )
    engine = ctranslate2.Translator(str(tmp_path / "out"), intra_threads=1)
    line = sample_lines("test", "de", 1)[0]
    [result] = engine.translate_batch(
        [pieces.encode(line, out_type=str)], beam_size=5, max_decoding_length=8
    )
    decode = loaded.config.decode.model_copy(update={"max_len_a": 0.0, "max_len_b": 8})
    [expected] = Translator(loaded.model, tokenizer, decode, FP32).translate([line])
    assert target.decode(result.hypotheses[0]) == expected


def test_the_command_exports_and_reports_the_proof(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model_folder(tmp_path / "model", tokenizer)
    result = run_mt(
        "export",
        tmp_path / "model",
        "-o",
        tmp_path / "out",
        "--quantization",
        "int8",
        "--lines",
        "40",
    )
    assert result.returncode == 0, result.stderr
    assert "data/sample/test.de, in fp32: 40 of 40 translations identical" in result.stdout
    assert "int8 compared with fp32: " in result.stdout
    again = run_mt("export", tmp_path / "model", "-o", tmp_path / "out")
    assert again.returncode == 1
    assert "already exists" in again.stderr


def test_an_export_without_text_is_reported_as_not_proven(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "model", tokenizer)
    monkeypatch.chdir(tmp_path)
    *_, last = export_and_verify(
        tmp_path / "model", tmp_path / "out", "ctranslate2", None, None, 1000
    )
    assert "no text was found; use --prove FILE" in last
    assert (tmp_path / "out" / "model.bin").exists()


def test_an_export_that_fails_its_proof_is_refused_and_deleted(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "model", tokenizer)
    real = workflow.export_ctranslate2

    def broken(loaded: LoadedModel, out: Path, quantization: str | None = None) -> None:
        loaded.model.decoder.layers[0].fc1.bias.data += 1.0
        real(loaded, out, quantization)
        loaded.model.decoder.layers[0].fc1.bias.data -= 1.0

    monkeypatch.setattr(workflow, "export_ctranslate2", broken)
    message = r"(?s)was not written, because the engines disagree: .* real differences\n  line \d+"
    with pytest.raises(ExportError, match=message):
        export_and_verify(tmp_path / "model", tmp_path / "out", "ctranslate2", None, None, 30)
    assert not (tmp_path / "out").exists()


def test_an_unknown_quantization_and_a_missing_package_are_named(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = model_folder(tmp_path / "model", tokenizer)
    with pytest.raises(ConfigError, match="'int7' is not one of int8"):
        export_and_verify(tmp_path / "model", tmp_path / "out", "ctranslate2", "int7", None, 0)
    hide_package("ctranslate2", monkeypatch)
    with pytest.raises(ExportError, match=r"install mt-forge\[ct2\]"):
        export_ctranslate2(loaded, tmp_path / "out")
