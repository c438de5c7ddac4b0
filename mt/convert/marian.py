"""Import of Marian models as Hugging Face keeps them, such as OPUS-MT's: weights, vocabulary and
search, without `transformers`.

Special pieces move to our ids, and all others keep their order, so that a folder of our own comes
back bit for bit. Marian begins a target with its padding; here that is a row of its own, a copy,
which a bias keeps from ever being written.
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
from mt.data.tokenizer import JOINT_FILE, SRC_FILE, TABLE_FILE, TGT_FILE, Tokenizer
from mt.errors import CheckpointError, listed
from mt.files import atomic_dir
from mt.model.transformer import build_model

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "silu", "swish": "silu"}
NEVER = (
    -100.0
)  # the bias of what is not to be written: e^-100 of a probability, and finite for label smoothing
STAND_INS = (
    "<s>",
    "<start>",
    "<start-of-target>",
    "<none>",
    "<none-2>",
    "<none-3>",
)  # names of special ids that a vocabulary lacks
PICKLES = ("pytorch_model.bin", "tf_model.h5", "model.npz")


@dataclass(frozen=True)
class Special:
    """Their special pieces of the target."""

    pad: str
    unk: str
    start: str  # what a target begins with; often its padding
    eos: str


@dataclass(frozen=True)
class MarianFolder:
    """What such a folder holds, read and checked."""

    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: dict[str, Any]
    weights: dict[str, Tensor]
    src_pieces: list[str]  # by their ids
    tgt_pieces: list[str]
    special: Special
    spm: tuple[Path, Path]


class TheirIds(NamedTuple):
    """Their id of each of our ids."""

    src: list[int]
    tgt: list[int]


def import_marian(folder: Path, out: Path) -> TheirIds:
    """Write a model folder. Raises `CheckpointError` with all reasons, or where `out` exists."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another folder")
    source = read_marian(folder)
    order = _order(source.tgt_pieces, source.special)
    has_own_start = source.special.start != source.special.pad
    config = _config(source)
    weights = _weights(source, config, order, has_own_start, folder)
    with tempfile.TemporaryDirectory() as given, atomic_dir(out) as temporary:
        _write_tokenizer(Path(given), source)
        model = ModelFolder(temporary)
        about = {"imported_from": folder.name, "format": "marian"}
        model.write(config, weights, Tokenizer.load(Path(given)).save, about)
        model.seal()
    return TheirIds(_order(source.src_pieces, source.special), order)


def read_marian(folder: Path) -> MarianFolder:
    """Open a folder. Raises `CheckpointError` with every reason why it cannot be imported."""
    config = _json(folder / "config.json")
    reasons = _unlike(config)
    spm = folder / "source.spm", folder / "target.spm"
    reasons += [f"{path.name} is missing" for path in spm if not path.is_file()]
    if not ModelFolder(folder).weights_path.is_file():
        pickles = [name for name in PICKLES if (folder / name).exists()]
        reasons.append(
            "model.safetensors is missing"
            + (f"; {_how_to_convert(pickles[0], folder)}" if pickles else "")
        )
    names = ["vocab.json", "target_vocab.json"]
    names = [name for name in names if name == names[0] or (folder / name).exists()]
    vocabularies = [_vocabulary(folder / name, reasons) for name in names]
    if reasons:
        raise CheckpointError(listed(f"{folder}: cannot be imported", reasons))
    optional = [
        _json(folder / name) if (folder / name).exists() else {}
        for name in ("generation_config.json", "tokenizer_config.json")
    ]
    try:
        special = _special(config, optional[0], optional[1], vocabularies[-1])
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: cannot be imported\n  {error}") from error
    source = MarianFolder(
        config,
        optional[0],
        optional[1],
        ModelFolder(folder).weights(),
        vocabularies[0],
        vocabularies[-1],
        special,
        spm,
    )
    _check_sizes(source, folder)
    return source


def _vocabulary(path: Path, reasons: list[str]) -> list[str]:
    """The pieces in the order of their ids; what is wrong with them is added to `reasons`."""
    pieces: list[str] = []
    try:
        ids = _json(path)
        pieces = sorted(ids, key=ids.__getitem__)
        if [ids[piece] for piece in pieces] != list(range(len(pieces))):
            reasons.append(f"{path.name}: its ids are not 0 to {len(pieces) - 1}, each once")
    except (CheckpointError, TypeError) as error:
        reasons.append(str(error))
    return pieces


def _check_sizes(source: MarianFolder, folder: Path) -> None:
    config = source.config
    sizes = {"vocab_size": len(source.src_pieces), "decoder_vocab_size": len(source.tgt_pieces)}
    wrong = [
        f"{key}: {config[key]}, but {size:,} pieces"
        for key, size in sizes.items()
        if (config.get(key) or size) != size
    ]
    if wrong:
        raise CheckpointError(listed(f"{folder}: its vocabulary does not fit its weights", wrong))


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return found


def _unlike(config: Mapping[str, Any]) -> list[str]:
    """In what a model differs from those that can be imported."""
    if config.get("model_type") != "marian":
        return [f"model_type: {config.get('model_type')}; only marian can be imported"]
    reasons = []
    for name in ("ffn_dim", "attention_heads"):
        sides = [config.get(f"{side}_{name}") for side in ("encoder", "decoder")]
        if sides[0] != sides[1]:
            reasons.append(
                f"{name}: {sides[0]} in the encoder, {sides[1]} in the decoder; they must be the same"
            )
    if not config.get("scale_embedding", False):
        reasons.append("scale_embedding: false; embeddings here are scaled by sqrt(d_model)")
    if config.get("activation_function") not in ACTIVATIONS:
        reasons.append(
            f"activation_function: {config.get('activation_function')} is none of {', '.join(ACTIVATIONS)}"
        )
    norms = ("normalize_before", "normalize_embedding", "add_final_layer_norm")
    return reasons + [
        f"{key}: true; only post-norm without further norms can be imported"
        for key in norms
        if config.get(key)
    ]


def _how_to_convert(name: str, folder: Path) -> str:
    return (
        f"{name} is no safetensors file, and a pickle can run code. Where you trust it, convert it once with transformers:\n"
        f"    python -c \"from transformers import MarianMTModel as M; M.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )


def _special(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    about: Mapping[str, Any],
    pieces: Sequence[str],
) -> Special:
    """The special pieces by the ids of config.json, else of generation_config.json, else by the
    names of the tokenizer.

    Raises `CheckpointError` for one that is not in the vocabulary.
    """

    def piece(role: str, usual: str) -> str:
        number = next(
            (
                found
                for place in (config, generation)
                if (found := place.get(f"{role}_token_id")) is not None
            ),
            None,
        )
        if isinstance(number, int) and 0 <= number < len(pieces):
            return pieces[number]
        name = about.get(f"{role}_token", usual)
        name = name.get("content", usual) if isinstance(name, dict) else name
        if name not in pieces:
            raise CheckpointError(
                f"{role}_token: neither the id {number} nor the piece {name!r} is in the vocabulary of {len(pieces):,}"
            )
        return str(name)

    pad = piece("pad", "<pad>")
    return Special(pad, piece("unk", "<unk>"), piece("decoder_start", pad), piece("eos", "</s>"))


def _order(pieces: Sequence[str], special: Special) -> list[int]:
    """Their id of each of ours, specials first; a special piece that a vocabulary lacks is its
    padding, or its unknown piece.
    """
    ids = {piece: i for i, piece in enumerate(pieces)}
    unk = ids.get(special.unk, 0)
    pad = ids.get(special.pad, unk)
    specials = [pad, unk, ids.get(special.start, pad), ids.get(special.eos, unk)]
    return [*specials, *(i for i in range(len(pieces)) if i not in specials)]


def _config(source: MarianFolder) -> Config:
    theirs, search = source.config, {**source.config, **source.generation}
    is_shared = theirs.get("share_encoder_decoder_embeddings", True)
    tied = (
        "none" if not theirs.get("tie_word_embeddings", True) else "all" if is_shared else "decoder"
    )
    is_joint = source.src_pieces == source.tgt_pieces
    positions = int(theirs.get("max_position_embeddings", 512))
    return Config.model_validate({
        "data": {"src_lang": source.tokenizer.get("source_lang"), "tgt_lang": source.tokenizer.get("target_lang")},
        "tokenizer": {"vocab_size": len(source.tgt_pieces), "joint": is_joint},
        "model": {
            "d_model": theirs["d_model"], "d_ff": theirs["encoder_ffn_dim"], "num_heads": theirs["encoder_attention_heads"],
            "encoder_layers": theirs["encoder_layers"], "decoder_layers": theirs["decoder_layers"], "norm": "post",
            "activation": ACTIVATIONS[theirs["activation_function"]], "dropout": float(theirs.get("dropout", 0.1)),
            "attention_dropout": float(theirs.get("attention_dropout", 0.0)), "tie_embeddings": tied, "output_bias": True,
            "activation_dropout": float(theirs.get("activation_dropout", 0.0)),
        },
        "decode": {
            "beam_size": int(search.get("num_beams") or 1), "length_penalty": float(search.get("length_penalty") or 1.0),
            "max_src_len": positions - 1, "max_len_a": 0.0, "max_len_b": min(int(search.get("max_length") or positions), positions) - 1,
        },
    })  # fmt: skip


def _weights(
    source: MarianFolder, config: Config, order: list[int], has_own_start: bool, folder: Path
) -> dict[str, Tensor]:
    given = {name.removeprefix("model."): weight.float() for name, weight in source.weights.items()}
    shared = given.get("shared.weight")
    bias = given.get("final_logits_bias", torch.zeros(1, len(source.tgt_pieces)))[0].clone()
    forbidden = source.generation.get("bad_words_ids") or source.config.get("bad_words_ids") or []
    banned = [words[0] for words in forbidden if len(words) == 1 and 0 <= words[0] < len(bias)]
    bias[banned] = NEVER
    tgt_rows = torch.tensor(order)
    src_rows = torch.tensor(_order(source.src_pieces, source.special))
    taken = {
        "encoder.embed_tokens.weight": given.get("encoder.embed_tokens.weight", shared),
        "decoder.embed_tokens.weight": given.get("decoder.embed_tokens.weight", shared),
        "output_projection.weight": given.get("lm_head.weight"), "output_bias": bias,
    }  # fmt: skip
    model = build_model(config.model, len(src_rows), len(tgt_rows), seed=0)
    weights, reasons = {}, []
    for name, parameter in model.named_parameters():
        weight = taken[name] if name in taken else given.get(name)
        if weight is not None and name in taken:
            rows, pieces = (
                (src_rows, source.src_pieces)
                if name.startswith("encoder")
                else (tgt_rows, source.tgt_pieces)
            )
            weight = weight[rows] if len(weight) == len(pieces) else weight
        if weight is None or weight.shape != parameter.shape:
            reasons.append(
                f"{name}: {'missing' if weight is None else list(weight.shape)} instead of {list(parameter.shape)}"
            )
        else:
            weights[name] = weight
    if reasons:
        raise CheckpointError(
            listed(f"{folder}: its weights do not fit its config.json", reasons[:8])
        )
    if not has_own_start:
        weights["output_bias"][2] = NEVER
    return weights


def _write_tokenizer(folder: Path, source: MarianFolder) -> None:
    """The SentencePiece models, and the table of pieces where their ids are not those of the
    vocabulary.
    """
    texts = [path.read_bytes() for path in source.spm]
    if texts[0] == texts[1] and source.src_pieces == source.tgt_pieces:
        (folder / JOINT_FILE).write_bytes(texts[0])
    else:
        for name, text in zip((SRC_FILE, TGT_FILE), texts, strict=True):
            (folder / name).write_bytes(text)
    sides = [
        [names[i] for i in _order(names, source.special)]
        for names in (source.src_pieces, source.tgt_pieces)
    ]
    tokenizer = Tokenizer.load(folder)
    if [tokenizer.src_pieces, tokenizer.tgt_pieces] == sides:
        return
    for pieces in sides:  # a piece that stands in for another is not there twice
        for place in range(4):
            if pieces.index(pieces[place]) != place:
                pieces[place] = next(name for name in STAND_INS if name not in pieces)
    table = sides[1] if sides[0] == sides[1] else {"src": sides[0], "tgt": sides[1]}
    (folder / TABLE_FILE).write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
