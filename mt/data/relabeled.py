"""A SentencePiece model under other ids: those of a table of pieces, as Marian's vocabularies have
them.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt.errors import CheckpointError

LANGUAGE_CODE = re.compile(
    r"(>>[^<>\s]+<<)\s*"
)  # before a line: into which language a model of several is to translate


def read_table(path: Path) -> tuple[list[str], list[str]]:
    """The piece of each source id and of each target id: one list for both, or `{"src": [...],
    "tgt": [...]}`.

    Raises `CheckpointError` for anything but lists of different strings.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    sides: tuple[Any, Any] = (
        (table.get("src"), table.get("tgt")) if isinstance(table, dict) else (table, table)
    )
    for pieces in sides:
        if (
            not isinstance(pieces, list)
            or not all(isinstance(piece, str) for piece in pieces)
            or len(set(pieces)) != len(pieces)
        ):
            raise CheckpointError(f"{path}: not a list of pieces, each there once")
    return sides


class RelabeledModel:
    """What `Tokenizer` uses of SentencePiece's `SentencePieceProcessor`, with the ids of `pieces`;
    a piece that has none is unknown.
    """

    def __init__(self, model: Any, pieces: Sequence[str], unk_id: int) -> None:
        self.model, self.pieces, self.unk_id = model, pieces, unk_id
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        self.own_ids = [
            int(model.piece_to_id(piece)) for piece in pieces
        ]  # the model's own; unknown where it lacks the piece

    def get_piece_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    def id_to_piece(self, i: int) -> str:
        """The piece of an id."""
        return self.pieces[i]

    def encode(self, lines: list[str], return_type: str | None = None) -> list[Any]:
        """As the model does; a language code at the beginning of a line is a piece of its own,
        where the table has it.
        """
        codes = [
            match if (match := LANGUAGE_CODE.match(line)) and match[1] in self.ids else None
            for line in lines
        ]
        texts = [
            line if code is None else line[code.end() :]
            for line, code in zip(lines, codes, strict=True)
        ]
        if return_type is not None:
            found = self.model.encode(texts, return_type=return_type)
            return [
                each if code is None else _after(code, each)
                for code, each in zip(codes, found, strict=True)
            ]
        return [
            [
                *([] if code is None else [self.ids[code[1]]]),
                *(self.ids.get(piece, self.unk_id) for piece in pieces),
            ]
            for code, pieces in zip(codes, self.model.encode(texts, out_type=str), strict=True)
        ]

    def decode(self, ids: Sequence[Any], return_type: str | None = None) -> Any:
        """As the model does, the ids of one text or of several."""
        if return_type is not None:
            return self.model.decode([self.own_ids[i] for i in ids], return_type=return_type)
        if ids and not isinstance(ids[0], int):
            return self.model.decode([[self.pieces[i] for i in line] for line in ids])
        return self.model.decode([self.pieces[i] for i in ids])


def _after(code: re.Match[str], found: dict[str, Any]) -> dict[str, Any]:
    """An offset mapping of what follows a language code, with the code before it."""
    offsets = [(start + code.end(), end + code.end()) for start, end in found["offsets"]]
    return {**found, "pieces": [code[1], *found["pieces"]], "offsets": [code.span(1), *offsets]}
