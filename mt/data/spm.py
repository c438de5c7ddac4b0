"""SentencePiece model files, changed where the library offers no way: their normalization, and the
ids of their special pieces.

A model file is one protocol buffer message, `ModelProto` of SentencePiece's
sentencepiece_model.proto. Its fields are copied byte for byte except for those that are replaced.
"""

import io
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import sentencepiece

from mt.config import Normalization

SENTENCEPIECE_RULES = {
    "none": "identity",
    "nfkc": "nfkc",
    "nmt_nfkc": "nmt_nfkc",
}  # its names of ours; it has none for nfc

PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3  # fields of ModelProto
PIECE_TEXT, PIECE_TYPE = 1, 3  # of ModelProto.SentencePiece
UNKNOWN, CONTROL = 2, 3  # its types
RULE_NAME, RULE_FILE = 1, 6  # of NormalizerSpec
SPECIAL_IDS_FIELDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}  # of TrainerSpec
SPECIAL_PIECES_FIELDS = {"unk": 45, "bos": 46, "eos": 47, "pad": 48}  # of TrainerSpec
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields


class ProtoField(NamedTuple):
    """One field of a message."""

    number: int
    value: bytes  # without its key and length
    encoded: bytes  # as it stands in the message


def read_fields(message: bytes) -> Iterator[ProtoField]:
    """The fields of a message in their order. Raises `ValueError` for bytes that are no message."""
    at = 0
    while at < len(message):
        start = at
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == BYTES:
            length, at = _read_varint(message, at)
        elif kind == VARINT:
            length = _read_varint(message, at)[1] - at
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {start}")
        if at + length > len(message):
            raise ValueError(f"cut short at byte {len(message)}")
        yield ProtoField(key >> 3, message[at : at + length], message[start : at + length])
        at += length


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"cut short at byte {at}")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def bytes_field(number: int, value: bytes) -> bytes:
    """An encoded field of text, bytes or a message."""
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def int_field(number: int, value: int) -> bytes:
    """An encoded field of a whole number that is not negative."""
    return _varint(number << 3 | VARINT) + _varint(value)


# Normalization


def with_normalization(model: bytes, rule: Normalization) -> bytes:
    """The same model with another normalization, as `tokenizer.src_normalization` names them."""
    spec = normalizer_spec(rule)
    fields = read_fields(model)
    return b"".join(
        bytes_field(NORMALIZER_SPEC, spec) if field.number == NORMALIZER_SPEC else field.encoded
        for field in fields
    )


@cache
def normalizer_spec(rule: Normalization) -> bytes:
    """The compiled form of a normalization, taken from a model that SentencePiece trains on next to
    nothing.
    """
    model = io.BytesIO()
    train = partial(
        sentencepiece.SentencePieceTrainer.train, sentence_iterator=iter(["a b"] * 4), model_writer=model, model_type="char",
        vocab_size=8, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    if rule in SENTENCEPIECE_RULES:
        train(normalization_rule_name=SENTENCEPIECE_RULES[rule])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "nfc.tsv"
            path.write_text(
                "".join(
                    f"{_hex(before)}\t{_hex(after)}\n" for before, after in nfc_rules().items()
                ),
                encoding="utf-8",
            )
            train(normalization_rule_tsv=str(path))
    [spec] = [
        field.value for field in read_fields(model.getvalue()) if field.number == NORMALIZER_SPEC
    ]
    if rule in SENTENCEPIECE_RULES:
        return spec
    kept = [
        field.encoded for field in read_fields(spec) if field.number not in (RULE_NAME, RULE_FILE)
    ]  # the path is of this machine
    return b"".join([bytes_field(RULE_NAME, rule.encode()), *kept])


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def nfc_rules() -> dict[str, str]:
    """What to write for each text that NFC writes as one other character, and a space for white
    space of any kind.

    Covers each character by itself and each composed character in all its spellings, whatever the
    order of its marks.
    """
    rules: dict[str, str] = {}
    variants: dict[
        str, str
    ] = {}  # another character for one that others are composed from, such as the Kelvin sign
    for character in map(chr, _code_points()):
        composed, decomposed = normalize("NFC", character), normalize("NFD", character)
        if character.isspace() and character != " ":
            rules[character] = " "
        elif composed != character:
            rules[character] = composed
            variants[composed] = character
        elif decomposed != character:
            rules |= dict.fromkeys(_spellings(character, decomposed), character)
    for spelling, character in list(rules.items()):
        if len(spelling) > 1 and spelling[0] in variants:
            rules[variants[spelling[0]] + spelling[1:]] = character
    return rules


def _code_points() -> Iterable[int]:
    return (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)


def _spellings(character: str, decomposed: str) -> Iterator[str]:
    """Other texts of the same character: its marks in any order, the first ones composed with what
    they follow or not.
    """
    first, marks = decomposed[0], decomposed[1:]
    for order in permutations(marks):
        for count in range(len(marks) + 1):
            spelling = normalize("NFC", first + "".join(order[:count])) + "".join(order[count:])
            if spelling != character and normalize("NFC", spelling) == character:
                yield spelling


# Special pieces


def with_special_ids(model: bytes, ids: Sequence[tuple[str, int]]) -> bytes:
    """The same model with its special pieces (`pad`, `unk`, `bos`, `eos`) at these ids, all others
    after them in their order.

    A special piece that the model lacks is added under SentencePiece's usual name. Raises
    `ValueError` if that name is already that of an ordinary piece, or the bytes are no model.
    """
    pieces, others = [], []
    trainer_spec = b""
    for field in read_fields(model):
        if field.number == PIECES:
            pieces.append(field)
        elif field.number == TRAINER_SPEC:
            trainer_spec = field.value
        else:
            others.append(field.encoded)
    names = _special_names(trainer_spec)
    by_text = {_piece_text(piece): piece for piece in pieces}
    placed = []
    for role, _ in sorted(ids, key=lambda each: each[1]):
        placed.append(_special_piece(role, names[role], by_text.get(names[role])))
    special = {names[role] for role, _ in ids}
    rest = [piece.encoded for piece in pieces if _piece_text(piece) not in special]
    own_fields = {SPECIAL_IDS_FIELDS[role] for role, _ in ids}
    spec = [field.encoded for field in read_fields(trainer_spec) if field.number not in own_fields]
    spec += [int_field(SPECIAL_IDS_FIELDS[role], number) for role, number in ids]
    return b"".join([*placed, *rest, bytes_field(TRAINER_SPEC, b"".join(spec)), *others])


def _special_names(trainer_spec: bytes) -> dict[str, bytes]:
    """The pieces that stand for `unk`, `bos`, `eos` and `pad` in a model."""
    names = {"unk": b"<unk>", "bos": b"<s>", "eos": b"</s>", "pad": b"<pad>"}
    roles = {number: role for role, number in SPECIAL_PIECES_FIELDS.items()}
    return names | {
        roles[field.number]: field.value
        for field in read_fields(trainer_spec)
        if field.number in roles
    }


def _piece_text(piece: ProtoField) -> bytes:
    return next(
        (field.value for field in read_fields(piece.value) if field.number == PIECE_TEXT), b""
    )


def _special_piece(role: str, name: bytes, existing: ProtoField | None) -> bytes:
    expected = UNKNOWN if role == "unk" else CONTROL
    if existing is None:
        return bytes_field(PIECES, bytes_field(PIECE_TEXT, name) + int_field(PIECE_TYPE, expected))
    kinds = [field.value[0] for field in read_fields(existing.value) if field.number == PIECE_TYPE]
    if kinds != [expected]:
        raise ValueError(
            f"its piece {name.decode()} is ordinary text, not the special piece `{role}`"
        )
    return existing.encoded
