"""Check that imported Marian folders give the same translations as in `transformers`."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mt.convert.huggingface import TransformersEngine, export_huggingface
from mt.convert.importing import import_and_verify
from mt.convert.marian import NEVER, import_marian
from mt.convert.parity import compare
from mt.data.tokenizer import Tokenizer
from mt.decode.loading import load_model
from mt.decode.translator import Translator
from mt.errors import CheckpointError
from mt.runtime.device import Compute
from tests.conftest import run_mt, sample_lines
from tests.convert.folders import model_folder

transformers = pytest.importorskip("transformers")
FP32 = Compute(torch.device("cpu"), torch.float32)
SIZES = {
    "d_model": 32,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "scale_embedding": True,
    "eos_token_id": 0,
    "forced_eos_token_id": None,
    "max_position_embeddings": 64,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def write_spm(path: Path, lang: str) -> list[str]:
    """Train a SentencePiece model with the default special ids, as in OPUS-MT.

    Returns its pieces, without the special ones.
    """
    import sentencepiece

    model = io.BytesIO()
    lines = iter(sample_lines("test", lang, 300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, vocab_size=250, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(i) for i in range(3, processor.get_piece_size())]


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random model like those from OPUS-MT.

    It has SiLU, output biases, two SentencePiece models with a joint vocabulary in another order,
    and targets that start with the padding piece.
    """
    folder = tmp_path_factory.mktemp("opus")
    pieces = sorted(
        {
            *write_spm(folder / "source.spm", "de"),
            *write_spm(folder / "target.spm", "en"),
            ">>eng<<",
        }
    )
    random.Random(4).shuffle(pieces)
    vocab = {piece: i for i, piece in enumerate(["</s>", "<unk>", *pieces, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    pad = len(vocab) - 1
    config = transformers.MarianConfig(
        vocab_size=len(vocab),
        encoder_layers=2,
        activation_function="silu",
        pad_token_id=pad,
        decoder_start_token_id=pad,
        **SIZES,
    )
    torch.manual_seed(7)
    model = transformers.MarianMTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.final_logits_bias.normal_()
    model.save_pretrained(str(folder))
    about = {"tokenizer_class": "MarianTokenizer", "source_lang": "de", "target_lang": "en"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def test_an_imported_model_has_the_same_logits_and_ids_as_transformers(
    opus: Path, tmp_path: Path
) -> None:
    marian_ids = import_marian(opus, tmp_path / "model").tgt
    loaded = load_model(tmp_path / "model", torch.device("cpu"))
    original = transformers.MarianMTModel.from_pretrained(str(opus)).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(opus))
    assert loaded.model.output_bias is not None
    assert float(original.final_logits_bias.abs().max()) > 1
    # Only `mt` has a separate start piece, whose id is 2.
    kept = [i for i in range(len(marian_ids)) if i != 2]
    for src, tgt in zip(
        [*sample_lines("test", "de", 20), ">>eng<< Ein Hund ?"],
        [*sample_lines("test", "en", 20), "A dog ?"],
        strict=True,
    ):
        [src_ids], [tgt_ids] = (
            loaded.tokenizer.encode_src([src]),
            loaded.tokenizer.encode_tgt([tgt]),
        )
        assert [marian_ids[i] for i in (*src_ids, 3)] == tokenizer(src)["input_ids"]
        assert [marian_ids[i] for i in (*tgt_ids, 3)] == tokenizer(text_target=tgt)["input_ids"]
        with torch.no_grad():
            actual = loaded.model.project(
                loaded.model(torch.tensor([[*src_ids, 3]]), None, torch.tensor([[2, *tgt_ids]]))
            )[0]
            inputs = {"input_ids": torch.tensor([[marian_ids[i] for i in (*src_ids, 3)]])}
            logits = original(
                **inputs, decoder_input_ids=torch.tensor([[marian_ids[i] for i in (2, *tgt_ids)]])
            ).logits[0]
        torch.testing.assert_close(
            actual[:, kept], logits[:, [marian_ids[i] for i in kept]], rtol=0, atol=1e-4
        )
        assert (actual[:, 2] < NEVER / 2).all()


def test_the_command_imports_and_reports_the_proof(opus: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(
        "".join(f"{line}\n" for line in sample_lines("test", "de", 12)), encoding="utf-8"
    )
    config = json.loads((opus / "generation_config.json").read_text(encoding="utf-8"))
    assert "num_beams" not in config
    result = run_mt(
        "import", "marian", opus, "-o", tmp_path / "model", "--prove", tmp_path / "text"
    )
    assert result.returncode == 0, result.stderr
    assert "12 of 12 translations identical" in result.stdout
    again = run_mt("import", "marian", opus, "-o", tmp_path / "model")
    assert (again.returncode, "already exists" in again.stderr) == (1, True)
    assert import_and_verify(opus, tmp_path / "second", None, 10)[-1].startswith(
        "not verified: use --prove FILE"
    )


@pytest.mark.parametrize("beam_size", [1, 3])
def test_an_imported_model_translates_as_transformers_does(
    opus: Path, tmp_path: Path, beam_size: int
) -> None:
    marian_ids = import_marian(opus, tmp_path / "model").tgt
    translator = Translator.load(
        tmp_path / "model", threads=1, beam_size=beam_size, max_len_a=0.5, max_len_b=6
    )
    engine = TransformersEngine(opus, translator.decode, marian_ids)
    parity = compare(translator, engine, sample_lines("test", "de", 20))
    assert parity.num_lines == 20
    assert parity.differences == []
    assert parity.score_gap < 1e-4


@pytest.mark.parametrize("tie_embeddings", ["all", "decoder", "none"])
def test_an_exported_model_is_imported_bit_for_bit(
    tmp_path: Path, tokenizer: Tokenizer, tie_embeddings: str
) -> None:
    loaded = model_folder(
        tmp_path / "model",
        tokenizer,
        norm="post",
        tie_embeddings=tie_embeddings,
        activation="silu",
        output_bias=True,
    )
    export_huggingface(loaded, tmp_path / "out", "marian")
    import_marian(tmp_path / "out", tmp_path / "back")
    back = load_model(tmp_path / "back", torch.device("cpu"))
    before, after = dict(loaded.model.named_parameters()), dict(back.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert back.tokenizer.hash == tokenizer.hash
    lines = sample_lines("test", "de", 5)
    assert Translator(back.model, back.tokenizer, loaded.config.decode, FP32).translate(
        lines
    ) == Translator(loaded.model, tokenizer, loaded.config.decode, FP32).translate(lines)


def test_an_imported_model_can_be_exported_again(opus: Path, tmp_path: Path) -> None:
    import_marian(opus, tmp_path / "model")
    loaded = load_model(tmp_path / "model", torch.device("cpu"))
    export_huggingface(loaded, tmp_path / "again", "marian")
    first, again = (
        transformers.MarianMTModel.from_pretrained(str(folder)).eval()
        for folder in (opus, tmp_path / "again")
    )
    tokenizers = [
        transformers.AutoTokenizer.from_pretrained(str(folder))
        for folder in (opus, tmp_path / "again")
    ]
    [line] = sample_lines("test", "de", 1)
    texts = []
    for model, tokenizer in zip((first, again), tokenizers, strict=True):
        output = model.generate(
            **tokenizer([line], return_tensors="pt"), num_beams=2, early_stopping=True, max_length=8
        )
        texts.append(tokenizer.batch_decode(output, skip_special_tokens=True))
    assert texts[0] == texts[1]


def test_an_imported_model_can_be_fine_tuned_and_exported(
    opus: Path, sample: Path, tmp_path: Path
) -> None:
    import_marian(opus, tmp_path / "model")
    config = {
        "run_dir": str(tmp_path / "run"),
        "cache_dir": str(tmp_path / "cache"),
        "threads": 1,
        "data": {
            name: [{"src": str(sample / f"{split}.de"), "tgt": str(sample / f"{split}.en")}]
            for name, split in (("train", "train"), ("valid", "test"))
        },
        "optim": {"lr": 0.003, "warmup_steps": 5},
        "train": {"max_steps": 30, "valid_every": 10, "save_every": 10},
        "batching": {"max_tokens": 512},
        "decode": {"max_len_a": 0.0, "max_len_b": 8, "beam_size": 2},
    }
    (tmp_path / "c.yaml").write_text(json.dumps(config), encoding="utf-8")
    result = run_mt("train", tmp_path / "c.yaml", "--init-from", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert "model.output_bias: True, as in" in result.stderr
    entries = [
        json.loads(line)
        for line in (tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    losses = [entry["loss"] for entry in entries if entry["kind"] == "valid"]
    assert losses[0] > losses[1] > losses[2]
    exported = run_mt(
        "export",
        tmp_path / "run",
        "-o",
        tmp_path / "out",
        "--to",
        "marian",
        "--prove",
        sample / "test.de",
        "--lines",
        10,
    )
    assert exported.returncode == 0, exported.stderr
    assert "10 of 10 translations identical" in exported.stdout


def damaged_copy(opus: Path, folder: Path, problem: str) -> None:
    for path in opus.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if problem == "architecture":
        config["model_type"] = "bart"
    elif problem == "several":
        config |= {"scale_embedding": False, "activation_function": "tanh", "decoder_ffn_dim": 64}
        (folder / "target.spm").unlink()
    elif problem == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif problem == "vocabulary":
        vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        (folder / "vocab.json").write_text(
            json.dumps({**vocab, "another": len(vocab)}), encoding="utf-8"
        )
    elif problem == "weights":
        weights = load_file(folder / "model.safetensors")
        del weights["model.decoder.layers.0.fc1.bias"]
        save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("problem", "messages"),
    [
        ("architecture", ["model_type: bart; only marian"]),
        (
            "several",
            [
                "scale_embedding: false",
                "activation_function: tanh is",
                "ffn_dim: 48 in the encoder, but 64",
                "target.spm is missing",
            ],
        ),
        ("pickle", ["model.safetensors is missing", "may contain code", "save_pretrained"]),
        ("vocabulary", ["vocabulary and weights do not match", "vocab_size"]),
        ("weights", ["decoder.layers.0.fc1.bias: missing instead of [48]"]),
    ],
)
def test_a_folder_that_cannot_be_imported_is_refused_with_all_reasons(
    opus: Path, tmp_path: Path, problem: str, messages: list[str]
) -> None:
    (tmp_path / "in").mkdir()
    damaged_copy(opus, tmp_path / "in", problem)
    with pytest.raises(CheckpointError) as error:
        import_marian(tmp_path / "in", tmp_path / "out")
    assert all(text in str(error.value) for text in messages), str(error.value)
    assert not (tmp_path / "out").exists()


def changed(
    opus: Path, folder: Path, name: str, change: Callable[[dict[str, Any]], object]
) -> Path:
    """Copy a Marian folder if need be, and change one of its JSON files."""
    if not folder.exists():
        shutil.copytree(opus, folder)
    path = folder / name
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_special_ids_are_found_in_each_file_that_may_define_them(
    opus: Path, tmp_path: Path
) -> None:
    expected = import_marian(opus, tmp_path / "expected")
    config = json.loads((opus / "config.json").read_text(encoding="utf-8"))
    ids = {
        f"{role}_token_id": config[f"{role}_token_id"] for role in ("pad", "decoder_start", "eos")
    }
    folder = changed(
        opus, tmp_path / "in", "config.json", lambda values: [values.pop(name) for name in ids]
    )
    changed(
        opus,
        folder,
        "generation_config.json",
        lambda values: [values.pop(name, None) for name in ids],
    )
    token = {"content": "<unk>", "lstrip": False, "single_word": False, "__type": "AddedToken"}
    changed(
        opus,
        folder,
        "tokenizer_config.json",
        lambda values: values.update(unk_token=token, pad_token="<pad>"),
    )
    assert import_marian(folder, tmp_path / "by-name") == expected
    bad_words = [[ids["pad_token_id"]], [10**6], [-1], [1, 2]]
    changed(
        opus,
        folder,
        "generation_config.json",
        lambda values: values.update(ids, bad_words_ids=bad_words),
    )
    assert import_marian(folder, tmp_path / "by-generation") == expected
    for name in ("by-name", "by-generation"):
        weights = [
            load_file(tmp_path / folder_name / "model.safetensors")
            for folder_name in ("expected", name)
        ]
        assert all(
            torch.equal(weights[0][key], weights[1][key])
            for key in weights[0]
            if key != "output_bias"
        )
    changed(
        opus, folder, "tokenizer_config.json", lambda values: values.update(unk_token="<nowhere>")
    )
    with pytest.raises(
        CheckpointError,
        match="unk_token: neither the id None nor the piece '<nowhere>' is in the vocabulary",
    ):
        import_marian(folder, tmp_path / "refused")


def test_separate_vocabularies_with_other_ids_are_imported(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    sides = {}
    for seed, (name, spm, lang) in enumerate(
        (("vocab.json", "source.spm", "de"), ("target_vocab.json", "target.spm", "en"))
    ):
        pieces = write_spm(folder / spm, lang)
        random.Random(seed).shuffle(pieces)
        sides[name] = ["</s>", "<unk>", *pieces, *([">>eng<<"] if lang == "de" else []), "<pad>"]
        (folder / name).write_text(
            json.dumps({piece: i for i, piece in enumerate(sides[name])}), encoding="utf-8"
        )
    src_size, tgt_size = map(len, sides.values())
    assert src_size != tgt_size
    torch.manual_seed(3)
    config = transformers.MarianConfig(
        vocab_size=src_size,
        decoder_vocab_size=tgt_size,
        share_encoder_decoder_embeddings=False,
        encoder_layers=1,
        activation_function="relu",
        pad_token_id=tgt_size - 1,
        decoder_start_token_id=tgt_size - 1,
        **SIZES,
    )
    model = transformers.MarianMTModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(str(folder))
    about = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": "de",
        "target_lang": "en",
        "separate_vocabs": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    ids = import_marian(folder, tmp_path / "model")
    loaded = load_model(tmp_path / "model", torch.device("cpu"))
    assert not loaded.tokenizer.is_joint
    for line in [*sample_lines("test", "de", 10), ">>eng<< Ein Hund ?"]:
        [src_ids] = loaded.tokenizer.encode_src([line])
        expected = transformers.AutoTokenizer.from_pretrained(str(folder))(line)["input_ids"]
        assert [ids.src[i] for i in (*src_ids, 3)] == expected
    translator = Translator(
        loaded.model,
        loaded.tokenizer,
        loaded.config.decode.model_copy(update={"max_len_b": 8}),
        FP32,
    )
    engine = TransformersEngine(folder, translator.decode, ids.tgt, ids.src)
    parity = compare(translator, engine, sample_lines("test", "de", 12))
    assert (parity.num_lines, parity.differences) == (12, [])
