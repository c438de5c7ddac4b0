"""Import Marian models in Hugging Face's format, such as OPUS-MT, without `transformers`.

The special pieces get the ids that `mt` uses, and all other pieces keep their order. So a model
that was exported by `mt` is imported bit for bit. In Marian models, targets often start with the
padding piece. `mt` has a separate start piece. Its embedding becomes a copy of the padding
embedding, and its output bias is so low that the piece is never generated.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mt.artifacts import ModelFolder
from mt.config import Config
from mt.data.tokenizer import BOS_ID, JOINT_FILE, SRC_FILE, TABLE_FILE, TGT_FILE, Tokenizer
from mt.errors import CheckpointError, join_reasons
from mt.files import atomic_dir
from mt.model.transformer import build_model

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}
# The output bias of pieces that must not be generated. It must be finite, because label smoothing
# averages over all pieces.
NEVER = -100.0
# Names of special pieces that are missing in a vocabulary.
STAND_INS = ("<s>", "<start>", "<start-of-target>", "<none>", "<none-2>", "<none-3>")
PICKLES = ("pytorch_model.bin", "tf_model.h5", "model.npz")


@dataclass(frozen=True)
class Special:
    """The special pieces of the target vocabulary."""

    pad: str
    unk: str
    start: str  # first input of the decoder; often the same piece as `pad`
    eos: str


@dataclass(frozen=True)
class MarianFolder:
    """The contents of a Marian folder, read and checked."""

    config: dict[str, Any]  # contents of config.json
    generation: dict[str, Any]  # contents of generation_config.json
    tokenizer: dict[str, Any]  # contents of tokenizer_config.json
    weights: dict[str, Tensor]
    src_pieces: list[str]  # in the order of the Marian ids
    tgt_pieces: list[str]
    special: Special
    spm: tuple[Path, Path]  # SentencePiece models of source and target


class MarianIds(NamedTuple):
    """Maps our source ids and target ids to Marian ids."""

    src: list[int]
    tgt: list[int]


def import_marian(folder: Path, out: Path) -> MarianIds:
    """Convert a Marian folder to the model folder `out`.

    Raises `CheckpointError` with all reasons if it cannot be imported, or if `out` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out}: already exists; choose another folder")
    source = read_marian(folder)
    config = _config(source)
    ids = MarianIds(
        _marian_ids(source.src_pieces, source.special),
        _marian_ids(source.tgt_pieces, source.special),
    )
    weights = _weights(source, config, ids, folder)
    with tempfile.TemporaryDirectory() as tokenizer, atomic_dir(out) as temporary:
        _write_tokenizer(Path(tokenizer), source, ids)
        model = ModelFolder(temporary)
        about = {"imported_from": folder.name, "format": "marian"}
        model.write(config, weights, Tokenizer.load(Path(tokenizer)).save, about)
        model.seal()
    return ids


def read_marian(folder: Path) -> MarianFolder:
    """Read a Marian folder. Raises `CheckpointError` with all reasons if it cannot be imported."""
    config = _json(folder / "config.json")
    reasons = _unsupported(config)
    spm = folder / "source.spm", folder / "target.spm"
    reasons += [f"{path.name} is missing" for path in spm if not path.is_file()]
    if not ModelFolder(folder).weights_path.is_file():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        advice = f"; {_how_to_convert(pickles[0], folder)}" if pickles else ""
        reasons.append(f"model.safetensors is missing{advice}")
    src_pieces = tgt_pieces = _vocabulary(folder / "vocab.json", reasons)
    if (folder / "target_vocab.json").exists():
        tgt_pieces = _vocabulary(folder / "target_vocab.json", reasons)
    if reasons:
        raise CheckpointError(join_reasons(f"{folder}: cannot be imported", reasons))
    generation, tokenizer = (
        _json(folder / name) if (folder / name).exists() else {}
        for name in ("generation_config.json", "tokenizer_config.json")
    )
    try:
        special = _special(config, generation, tokenizer, tgt_pieces)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: cannot be imported\n  {error}") from error
    weights = ModelFolder(folder).weights()
    source = MarianFolder(
        config, generation, tokenizer, weights, src_pieces, tgt_pieces, special, spm
    )
    _check_sizes(source, folder)
    return source


def _vocabulary(path: Path, reasons: list[str]) -> list[str]:
    """Return the pieces of a vocabulary in id order. Adds problems to `reasons`."""
    pieces: list[str] = []
    try:
        ids = _json(path)
        pieces = sorted(ids, key=ids.__getitem__)
        if [ids[piece] for piece in pieces] != list(range(len(pieces))):
            reasons.append(f"{path.name}: the ids must be 0 to {len(pieces) - 1}, each used once")
    except (CheckpointError, TypeError) as error:
        reasons.append(str(error))
    return pieces


def _check_sizes(source: MarianFolder, folder: Path) -> None:
    config = source.config
    sizes = {"vocab_size": len(source.src_pieces), "decoder_vocab_size": len(source.tgt_pieces)}
    wrong = [
        f"{key}: {config[key]}, but the vocabulary has {size:,} pieces"
        for key, size in sizes.items()
        if (config.get(key) or size) != size
    ]
    if wrong:
        raise CheckpointError(join_reasons(f"{folder}: vocabulary and weights do not match", wrong))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """Return the reasons why a model with this config.json cannot be imported."""
    if config.get("model_type") != "marian":
        return [f"model_type: {config.get('model_type')}; only marian can be imported"]
    reasons = []
    for name in ("ffn_dim", "attention_heads"):
        sides = [config.get(f"{side}_{name}") for side in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            reasons.append(
                f"{name}: {sides[0]} in the encoder, but {sides[1]} in the decoder; must be equal"
            )
    if not config.get("scale_embedding", False):
        reasons.append("scale_embedding: false; mt always scales embeddings by sqrt(d_model)")
    if (activation := config.get("activation_function")) not in ACTIVATIONS:
        reasons.append(f"activation_function: {activation} is not one of {', '.join(ACTIVATIONS)}")
    norms = ("normalize_before", "normalize_embedding", "add_final_layer_norm")
    return reasons + [
        f"{key}: true; only post-norm models without additional norms can be imported"
        for key in norms
        if config.get(key)
    ]


def _how_to_convert(name: str, folder: Path) -> str:
    return (
        f"{name} may contain code that runs on loading. If you trust it, convert it:\n"
        '    python -c "from transformers import MarianMTModel as M; '
        f"M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _special(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    pieces: Sequence[str],
) -> Special:
    """Return the special pieces.

    They are looked up by id, according to config.json or else generation_config.json. Without an
    id, they are looked up by name, according to tokenizer_config.json. Raises `CheckpointError` if
    one is not in the vocabulary.
    """

    def find(role: str, default: str) -> str:
        """Return the special piece for `role`."""
        key = f"{role}_token_id"
        number = config.get(key)
        if number is None:
            number = generation.get(key)
        if isinstance(number, int) and 0 <= number < len(pieces):
            return pieces[number]
        name = tokenizer.get(f"{role}_token", default)
        name = name.get("content", default) if isinstance(name, dict) else name
        if name not in pieces:
            raise CheckpointError(
                f"{role}_token: neither the id {number} nor the piece {name!r} is in the "
                f"vocabulary of {len(pieces):,} pieces"
            )
        return str(name)

    pad = find("pad", "<pad>")
    return Special(pad, find("unk", "<unk>"), find("decoder_start", pad), find("eos", "</s>"))


def _marian_ids(pieces: Sequence[str], special: Special) -> list[int]:
    """Map our ids to Marian ids: first the special pieces, then all other pieces in order.

    If the padding or end-of-sentence piece is missing, it is replaced by the unknown piece. If the
    start piece is missing, it is replaced by the padding piece.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    unk = ids.get(special.unk, 0)
    pad = ids.get(special.pad, unk)
    specials = [pad, unk, ids.get(special.start, pad), ids.get(special.eos, unk)]
    return [*specials, *(i for i in range(len(pieces)) if i not in specials)]


def _config(source: MarianFolder) -> Config:
    marian, search = source.config, {**source.config, **source.generation}
    tied = "all" if marian.get("share_encoder_decoder_embeddings", True) else "decoder"
    if not marian.get("tie_word_embeddings", True):
        tied = "none"
    positions = int(marian.get("max_position_embeddings", 512))
    settings = {
        "data": {
            "src_lang": source.tokenizer.get("source_lang"),
            "tgt_lang": source.tokenizer.get("target_lang"),
        },
        "tokenizer": {
            "vocab_size": len(source.tgt_pieces),
            "joint": source.src_pieces == source.tgt_pieces,
        },
        "model": {
            "d_model": marian["d_model"],
            "d_ff": marian["encoder_ffn_dim"],
            "num_heads": marian["encoder_attention_heads"],
            "encoder_layers": marian["encoder_layers"],
            "decoder_layers": marian["decoder_layers"],
            "norm": "post",
            "activation": ACTIVATIONS[marian["activation_function"]],
            "dropout": float(marian.get("dropout", 0.1)),
            "attention_dropout": float(marian.get("attention_dropout", 0.0)),
            "activation_dropout": float(marian.get("activation_dropout", 0.0)),
            "tie_embeddings": tied,
            "output_bias": True,
        },
        "decode": {
            "beam_size": int(search.get("num_beams") or 1),
            "length_penalty": float(search.get("length_penalty") or 1.0),
            "max_src_len": positions - 1,
            "max_len_a": 0.0,
            "max_len_b": min(int(search.get("max_length") or positions), positions) - 1,
        },
    }
    return Config.model_validate(settings)


def _weights(
    source: MarianFolder, config: Config, ids: MarianIds, folder: Path
) -> dict[str, Tensor]:
    """Return the weights, keyed by our names.

    Raises `CheckpointError` if they do not fit `config`.
    """
    marian = {name.removeprefix("model."): x.float() for name, x in source.weights.items()}
    shared = marian.get("shared.weight")
    bias = marian.get("final_logits_bias", torch.zeros(1, len(source.tgt_pieces)))[0].clone()
    bad_words = source.generation.get("bad_words_ids") or source.config.get("bad_words_ids") or []
    bias[[word[0] for word in bad_words if len(word) == 1 and 0 <= word[0] < len(bias)]] = NEVER
    by_piece = {
        "encoder.embed_tokens.weight": marian.get("encoder.embed_tokens.weight", shared),
        "decoder.embed_tokens.weight": marian.get("decoder.embed_tokens.weight", shared),
        "output_projection.weight": marian.get("lm_head.weight"),
        "output_bias": bias,
    }
    model = build_model(config.model, len(ids.src), len(ids.tgt), seed=0)
    weights, reasons = {}, []
    for name, parameter in model.named_parameters():
        weight = by_piece.get(name, marian.get(name))
        if weight is not None and name in by_piece:
            is_source = name.startswith("encoder")
            rows = ids.src if is_source else ids.tgt
            pieces = source.src_pieces if is_source else source.tgt_pieces
            weight = weight[rows] if len(weight) == len(pieces) else weight
        if weight is None or weight.shape != parameter.shape:
            shape = "missing" if weight is None else list(weight.shape)
            reasons.append(f"{name}: {shape} instead of {list(parameter.shape)}")
        else:
            weights[name] = weight
    if reasons:
        head = f"{folder}: weights and config.json do not match"
        raise CheckpointError(join_reasons(head, reasons[:8]))
    if source.special.start == source.special.pad:
        weights["output_bias"][BOS_ID] = NEVER
    return weights


def _write_tokenizer(folder: Path, source: MarianFolder, ids: MarianIds) -> None:
    """Write the SentencePiece models, and also a table of pieces if the vocabulary differs."""
    models = [path.read_bytes() for path in source.spm]
    if models[0] == models[1] and source.src_pieces == source.tgt_pieces:
        (folder / JOINT_FILE).write_bytes(models[0])
    else:
        for name, model in zip((SRC_FILE, TGT_FILE), models, strict=True):
            (folder / name).write_bytes(model)
    src = [source.src_pieces[i] for i in ids.src]
    tgt = [source.tgt_pieces[i] for i in ids.tgt]
    tokenizer = Tokenizer.load(folder)
    if (tokenizer.src_pieces, tokenizer.tgt_pieces) == (src, tgt):
        return
    # Pieces must be unique, so if two special pieces are the same, one gets a new name.
    for pieces in (src, tgt):
        for i in range(4):
            if pieces.index(pieces[i]) != i:
                pieces[i] = next(name for name in STAND_INS if name not in pieces)
    table = src if src == tgt else {"src": src, "tgt": tgt}
    (folder / TABLE_FILE).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
