"""A SentencePiece model whose pieces get other ids, which are given in a table.

Models imported from Marian need this, because a Marian vocabulary file has its own order of pieces.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mt.errors import CheckpointError

# A token such as `>>fra<<` at the start of a line, which selects the target language of a
# multilingual Marian model.
LANGUAGE_CODE = re.compile(r"(>>[^<>\s]+<<)\s*")


def read_table(path: Path) -> tuple[list[str], list[str]]:
    """Read a table of pieces, and return (source pieces, target pieces), each in id order.

    The JSON file contains one list for both sides, or `{"src": [...], "tgt": [...]}`. Raises
    `CheckpointError` if it contains anything else, or if a list contains a piece twice.
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
            raise CheckpointError(f"{path}: not a list of distinct pieces")
    return sides


class RelabeledModel:
    """Wraps a `SentencePieceProcessor` so that the id of a piece is its index in `pieces`.

    Has only the methods that `Tokenizer` calls. Pieces of the model that are not in `pieces` get
    the id `unk_id`.
    """

    def __init__(self, model: Any, pieces: Sequence[str], unk_id: int) -> None:
        self.model, self.pieces, self.unk_id = model, pieces, unk_id
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        # The id of each piece in `model`, or the unknown id if the model does not have the piece.
        self.model_ids = [int(model.piece_to_id(piece)) for piece in pieces]

    def get_piece_size(self) -> int:
        """Return the number of ids."""
        return len(self.pieces)

    def id_to_piece(self, i: int) -> str:
        """Return the piece with the given id."""
        return self.pieces[i]

    def encode(self, lines: list[str], return_type: str | None = None) -> list[Any]:
        """Encode lines like `SentencePieceProcessor.encode`.

        A language code at the start of a line becomes one piece if `pieces` contains it.
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
            mappings = self.model.encode(texts, return_type=return_type)
            return [
                mapping if code is None else _prepend_code(code, mapping)
                for code, mapping in zip(codes, mappings, strict=True)
            ]
        return [
            [
                *([] if code is None else [self.ids[code[1]]]),
                *(self.ids.get(piece, self.unk_id) for piece in pieces),
            ]
            for code, pieces in zip(codes, self.model.encode(texts, out_type=str), strict=True)
        ]

    def decode(self, ids: Sequence[Any], return_type: str | None = None) -> Any:
        """Decode the ids of one or more texts, like `SentencePieceProcessor.decode`."""
        if return_type is not None:
            return self.model.decode([self.model_ids[i] for i in ids], return_type=return_type)
        if ids and not isinstance(ids[0], int):
            return self.model.decode([[self.pieces[i] for i in line] for line in ids])
        return self.model.decode([self.pieces[i] for i in ids])


def _prepend_code(code: re.Match[str], mapping: dict[str, Any]) -> dict[str, Any]:
    """Add a language code to the offset mapping of the text that follows it in the line."""
    offsets = [(start + code.end(), end + code.end()) for start, end in mapping["offsets"]]
    return {**mapping, "pieces": [code[1], *mapping["pieces"]], "offsets": [code.span(1), *offsets]}
