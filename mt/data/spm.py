"""Change SentencePiece model files in two ways that the library does not offer: replace the
normalization, and give the special pieces other ids.

A model file is a protocol buffer message: the `ModelProto` of SentencePiece's
sentencepiece_model.proto. All fields that are not replaced are copied byte for byte.
"""

import io
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import permutations
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import sentencepiece

from mt.config import Normalization

# SentencePiece's names for our normalizations. It does not know nfc.
SENTENCEPIECE_RULES = {"none": "identity", "nfkc": "nfkc", "nmt_nfkc": "nmt_nfkc"}

# Field numbers in the messages of sentencepiece_model.proto, and values of enumerations.
PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3  # fields of ModelProto
PIECE_TEXT, PIECE_TYPE = 1, 3  # fields of ModelProto.SentencePiece
UNKNOWN, CONTROL = 2, 3  # values of ModelProto.SentencePiece.Type
RULE_NAME, RULE_FILE = 1, 6  # fields of NormalizerSpec
SPECIAL_IDS_FIELDS = {"unk": 40, "bos": 41, "eos": 42, "pad": 43}  # fields of TrainerSpec
SPECIAL_PIECES_FIELDS = {"unk": 45, "bos": 46, "eos": 47, "pad": 48}  # fields of TrainerSpec
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


class ProtoField(NamedTuple):
    """One field of a protocol buffer message."""

    number: int
    value: bytes  # without key and length
    encoded: bytes  # the whole field, with key and length


def read_fields(message: bytes) -> Iterator[ProtoField]:
    """Yield the fields of a message in order. Raises `ValueError` for invalid bytes."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        wire_type = key & 7
        if wire_type == BYTES:
            length, position = _read_varint(message, position)
        elif wire_type == VARINT:
            length = _read_varint(message, position)[1] - position
        elif wire_type in (FIXED64, FIXED32):
            length = 8 if wire_type == FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type} at byte {start}")
        end = position + length
        if end > len(message):
            raise ValueError(f"truncated at byte {len(message)}")
        yield ProtoField(key >> 3, message[position:end], message[start:end])
        position = end


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Return (number that starts at `position`, position after the number)."""
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"truncated at byte {position}")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def bytes_field(number: int, value: bytes) -> bytes:
    """Encode a field that holds text, bytes or a message."""
    return _varint(number << 3 | BYTES) + _varint(len(value)) + value


def int_field(number: int, value: int) -> bytes:
    """Encode a field that holds an integer, which must not be negative."""
    return _varint(number << 3 | VARINT) + _varint(value)


# Normalization


def normalizer(rule: Normalization) -> Callable[[str], str]:
    """Return a function that normalizes text in the same way as a model with this normalization."""
    if rule == "none":
        return str
    if rule == "nfc":
        return partial(normalize, "NFC")
    library_normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule,
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    return lambda line: str(library_normalizer.normalize(line))


def with_normalization(model: bytes, rule: Normalization) -> bytes:
    """Return a model file with its normalization replaced by `rule`."""
    spec = normalizer_spec(rule)
    fields = read_fields(model)
    return b"".join(
        bytes_field(NORMALIZER_SPEC, spec) if field.number == NORMALIZER_SPEC else field.encoded
        for field in fields
    )


@cache
def normalizer_spec(rule: Normalization) -> bytes:
    """Return the NormalizerSpec message of a normalization.

    SentencePiece compiles this message only when it trains a model, so a tiny model is trained.
    """
    model = io.BytesIO()
    train = partial(
        sentencepiece.SentencePieceTrainer.train,
        sentence_iterator=iter(["a b"] * 4),
        model_writer=model,
        model_type="char",
        vocab_size=8,
        hard_vocab_limit=False,
        minloglevel=2,
    )
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
    # The message contains the path of the temporary file, which is different each time.
    kept = [
        field.encoded for field in read_fields(spec) if field.number not in (RULE_NAME, RULE_FILE)
    ]
    return b"".join([bytes_field(RULE_NAME, rule.encode()), *kept])


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def nfc_rules() -> dict[str, str]:
    """Map texts to their NFC form, for all texts whose NFC form is a single character.

    The texts are single characters, and composed characters written as a base character with marks
    in any order. Unlike NFC, the table also maps any white space to a plain space.
    """
    rules: dict[str, str] = {}
    # Maps a character to another one with the same NFC form, such as K to the Kelvin sign.
    variants: dict[str, str] = {}
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
    """Yield the other ways to write a composed character.

    The marks can be in any order, and the first few can be composed with the base character.
    """
    first, marks = decomposed[0], decomposed[1:]
    for order in permutations(marks):
        for count in range(len(marks) + 1):
            spelling = normalize("NFC", first + "".join(order[:count])) + "".join(order[count:])
            if spelling != character and normalize("NFC", spelling) == character:
                yield spelling


# Special pieces


def with_special_ids(model: bytes, ids: Sequence[tuple[str, int]]) -> bytes:
    """Return a model file whose special pieces have the given ids, as (role, id).

    The roles are `pad`, `unk`, `bos` and `eos`. The other pieces keep their order. If the model
    lacks a special piece, it is added under SentencePiece's default name. Raises `ValueError` if
    an ordinary piece has that name already, or if the bytes are not a model file.
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
    special = [
        _special_piece(role, names[role], by_text.get(names[role]))
        for role, _ in sorted(ids, key=lambda item: item[1])
    ]
    special_names = {names[role] for role, _ in ids}
    rest = [piece.encoded for piece in pieces if _piece_text(piece) not in special_names]
    id_fields = {SPECIAL_IDS_FIELDS[role] for role, _ in ids}
    spec = [field.encoded for field in read_fields(trainer_spec) if field.number not in id_fields]
    spec += [int_field(SPECIAL_IDS_FIELDS[role], number) for role, number in ids]
    return b"".join([*special, *rest, bytes_field(TRAINER_SPEC, b"".join(spec)), *others])


def _special_names(trainer_spec: bytes) -> dict[str, bytes]:
    """Return the pieces that a model uses as `unk`, `bos`, `eos` and `pad`."""
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
    """Return the encoded piece for a role: the existing piece, or a new one if there is none."""
    expected = UNKNOWN if role == "unk" else CONTROL
    if existing is None:
        return bytes_field(PIECES, bytes_field(PIECE_TEXT, name) + int_field(PIECE_TYPE, expected))
    kinds = [field.value[0] for field in read_fields(existing.value) if field.number == PIECE_TYPE]
    if kinds != [expected]:
        raise ValueError(
            f"its piece {name.decode()} is ordinary text, not the special piece `{role}`"
        )
    return existing.encoded
