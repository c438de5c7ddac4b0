"""Check that `transformers` gives the same translations and scores with our exports."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mt.convert.export import export_and_verify
from mt.convert.huggingface import TransformersEngine, check_tokenizer, export_huggingface
from mt.convert.parity import MTEngine, compare
from mt.data.tokenizer import Tokenizer
from mt.decode.translator import Translator
from mt.errors import ConfigError, ExportError
from mt.runtime.device import Compute
from tests.conftest import run_mt, sample_lines
from tests.convert.folders import hide_package, model_folder

transformers = pytest.importorskip("transformers")
FP32 = Compute(torch.device("cpu"), torch.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Train a tokenizer with a separate vocabulary for each language."""
    from mt.config import Config
    from mt.data.prepare import prepare

    folder = tmp_path_factory.mktemp("separate")
    data = {"train": [{"src": "data/sample/test.de", "tgt": "data/sample/test.en"}]}
    config = {
        "data": data,
        "tokenizer": {"joint": False, "vocab_size": 400},
        "model": {"tie_embeddings": "decoder"},
        "cache_dir": str(folder),
    }
    return prepare(Config.model_validate(config)).tokenizer


@pytest.mark.parametrize(
    ("format", "norm", "activation", "tie_embeddings"),
    [
        ("marian", "post", "relu", "all"),
        ("marian", "post", "silu", "decoder"),
        ("marian", "post", "gelu", "none"),
        ("pegasus", "pre", "relu", "all"),
    ],
)
@pytest.mark.parametrize("beam_size", [1, 4])
def test_transformers_gives_our_translations_with_our_scores(
    tmp_path: Path,
    tokenizer: Tokenizer,
    beam_size: int,
    format: Any,
    norm: str,
    activation: str,
    tie_embeddings: str,
) -> None:
    options = {
        "norm": norm,
        "activation": activation,
        "tie_embeddings": tie_embeddings,
        "output_bias": activation != "gelu",
    }
    loaded = model_folder(tmp_path / "model", tokenizer, **options)
    export_huggingface(loaded, tmp_path / "out", format)
    decode = loaded.config.decode.model_copy(update={"beam_size": beam_size})
    translator = Translator(loaded.model, loaded.tokenizer, decode, FP32)
    engine = TransformersEngine(tmp_path / "out", decode)
    parity = compare(translator, engine, sample_lines("test", "de", 40))
    assert parity.num_lines == 40
    assert parity.differences == []
    assert parity.score_gap < 1e-4
    source = tokenizer.encode_src(sample_lines("test", "de", 1))[0]
    assert engine.score(source, [5, 9, 100]) == pytest.approx(
        MTEngine(translator).score(source, [5, 9, 100]), abs=1e-4
    )


def test_the_exported_tokenizer_encodes_and_decodes_like_ours(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    lines = [
        *sample_lines("test", "de", 30),
        "  odd   spaces ",
        "Zahl 12,5 \u2013 \u201eZitat\u201c \U0001f600 \u72ac",
    ]
    export_huggingface(
        model_folder(tmp_path / "model", tokenizer, norm="post"), tmp_path / "out", "marian"
    )
    check_tokenizer(tmp_path / "out", tokenizer, lines)
    exported = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    for line in sample_lines("test", "en", 20):
        [ids] = tokenizer.encode_tgt([line])
        assert exported(text_target=line)["input_ids"][:-1] == ids
        assert exported.decode(ids, skip_special_tokens=True) == tokenizer.decode_tgt(ids) == line


def test_separate_vocabularies_are_exported_separately(tmp_path: Path, separate: Tokenizer) -> None:
    assert separate.src_pieces != separate.tgt_pieces
    loaded = model_folder(tmp_path / "model", separate, norm="post", tie_embeddings="decoder")
    report = export_and_verify(tmp_path / "model", tmp_path / "out", "marian", None, None, 20)
    assert "20 of 20 translations identical" in report[1]
    exported = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    [line] = sample_lines("test", "en", 1)
    [ids] = loaded.tokenizer.encode_tgt([line])
    assert exported(text_target=line)["input_ids"][:-1] == ids
    assert exported.decode(ids, skip_special_tokens=True) == line


def test_the_exported_folder_is_all_that_transformers_needs(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Use only the two `Auto` classes, with the search options in the folder."""
    loaded = model_folder(tmp_path / "model", tokenizer, norm="post")
    export_huggingface(loaded, tmp_path / "out", "marian")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path / "out")).eval()
    exported = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    line = sample_lines("test", "de", 1)
    [output] = model.generate(**exported(line, return_tensors="pt"), max_new_tokens=8)
    decode = loaded.config.decode.model_copy(update={"max_len_a": 0.0, "max_len_b": 8})
    assert [exported.decode(output, skip_special_tokens=True)] == Translator(
        loaded.model, tokenizer, decode, FP32
    ).translate(line)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "source.spm",
        "target.spm",
        "tokenizer_config.json",
        "vocab.json",
    }
    generation = json.loads((tmp_path / "out/generation_config.json").read_text(encoding="utf-8"))
    assert (generation["early_stopping"], generation["forced_eos_token_id"]) == (True, None)


def test_a_model_that_the_format_cannot_express_is_refused_with_all_reasons(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pre = model_folder(tmp_path / "pre", tokenizer, norm="pre", tie_embeddings="none")
    with pytest.raises(ExportError, match=r"Marian models are post-norm; try --to pegasus"):
        export_huggingface(pre, tmp_path / "out", "marian")
    post = model_folder(tmp_path / "post", tokenizer, norm="post", tie_embeddings="decoder")
    reasons = r"(?s)Pegasus models are pre-norm; .*\n  model.tie_embeddings: decoder, but Pegasus"
    with pytest.raises(ExportError, match=reasons):
        export_huggingface(post, tmp_path / "out", "pegasus")
    assert not (tmp_path / "out").exists()


def test_the_command_exports_and_reports_the_proof(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model_folder(tmp_path / "model", tokenizer, norm="post")
    result = run_mt(
        "export", tmp_path / "model", "-o", tmp_path / "out", "--to", "marian", "--lines", "20"
    )
    assert result.returncode == 0, result.stderr
    assert "for transformers (Marian), weights in float32" in result.stdout
    assert "20 of 20 translations identical" in result.stdout
    assert result.stderr == ""
    model_folder(tmp_path / "pre", tokenizer, norm="pre")
    other = run_mt(
        "export", tmp_path / "pre", "-o", tmp_path / "out3", "--to", "pegasus", "--lines", "20"
    )
    assert (other.returncode, other.stderr) == (0, "")
    wrong = run_mt(
        "export",
        tmp_path / "model",
        "-o",
        tmp_path / "out2",
        "--to",
        "marian",
        "--quantization",
        "int8",
    )
    assert wrong.returncode == 2
    assert "--quantization needs --to ctranslate2" in wrong.stderr


def test_an_exported_tokenizer_with_other_ids_is_refused(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    export_huggingface(
        model_folder(tmp_path / "model", tokenizer, norm="post"), tmp_path / "out", "marian"
    )
    vocab = json.loads((tmp_path / "out/vocab.json").read_text(encoding="utf-8"))
    pieces = sorted(vocab, key=vocab.__getitem__)
    permuted = {piece: i for i, piece in enumerate([*pieces[:4], *pieces[:3:-1]])}
    (tmp_path / "out/vocab.json").write_text(json.dumps(permuted), encoding="utf-8")
    with pytest.raises(ExportError, match="its tokenizer splits line 1 differently"):
        check_tokenizer(tmp_path / "out", tokenizer, sample_lines("test", "de", 2))


def test_a_missing_package_is_named(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "model", tokenizer, norm="post")
    hide_package("transformers", monkeypatch)
    with pytest.raises(ExportError, match=r"install mt-forge\[hf\]"):
        export_and_verify(tmp_path / "model", tmp_path / "out", "marian", None, None, 5)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="needs --to ctranslate2"):
        export_and_verify(tmp_path / "model", tmp_path / "out", "pegasus", "int8", None, 5)
