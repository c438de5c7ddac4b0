"""`mt translate`: lines, their translations, and what else is to be told of them."""

import itertools
import json
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mt.data.tokenizer import EOS_ID
from mt.decode.alignment import Alignment, pharaoh
from mt.decode.likelihood import TokenScores
from mt.decode.parts import Translation
from mt.decode.translator import Progress, Translator
from mt.errors import MTError
from mt.runtime.world import World

FIRST = 2048  # lines of the first window
PAUSE = 0.05  # seconds without a further line, after which what has come is translated


@dataclass(frozen=True)
class Row:
    """A line and its translations, best first."""

    number: int  # from 1
    source: str
    translations: list[Translation]
    alignment: Alignment | None  # of the best translation, where it was asked for
    # Of each part of each translation, where they were asked for.
    token_scores: list[list[TokenScores]] | None

    @property
    def over_long(self) -> bool:
        """Whether the line was translated in parts."""
        return len(self.translations[0].parts) > 1


class Written(NamedTuple):
    """What there is to write of a line."""

    text: str
    alignment: str
    over_long: bool


def outputs(
    world: World, translator: Translator, windows: Iterator[list[str]], format: str,
    with_alignment: bool = False, on_progress: Progress | None = None,
) -> Iterator[list[Written]]:  # fmt: skip
    """What to write of each line, in order and on all ranks, which share the lines of each window."""
    pieces = translator.tokenizer.tgt_pieces

    def of(numbered: Sequence[tuple[int, str]]) -> list[Written]:
        scores = format == "jsonl"
        rows = translated_rows(translator, numbered, with_alignment, scores, on_progress)
        return [
            Written(formatted(row, format, pieces), pharaoh(row.alignment or []), row.over_long)
            for row in rows
        ]

    number = 1
    while window := world.broadcast_from_rank0(
        lambda: next(windows, [])
    ):  # only the first rank reads
        written = world.map_sharded(of, list(enumerate(window, number)))
        yield [Written(*each) for each in written]
        number += len(window)


def read_ahead(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Windows of lines, of `FIRST` at first, then each of twice as many, up to `size`: what is
    finished early can be kept.

    What was read before an error comes before the error.
    """
    window: list[str] = []
    limit = min(FIRST, size)
    try:
        for line in lines:
            window.append(line)
            if len(window) == limit:
                yield window
                window, limit = [], min(2 * limit, size)
    except MTError:
        if window:
            yield window
        raise
    if window:
        yield window


def read_live(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Windows of at most `size` lines of a pipe or terminal: what has come when the input pauses. A
    thread reads.
    """
    arrived: queue.Queue[str | BaseException | None] = queue.Queue(2 * size)

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, name="mt-input", daemon=True).start()
    window: list[str] = []
    while True:
        try:
            line = arrived.get(timeout=PAUSE if window else None)
        except queue.Empty:
            yield window
            window = []
            continue
        if line is None or isinstance(line, BaseException) or len(window) == size:
            if window:
                yield window
            window = []
        if isinstance(line, BaseException):
            raise line
        if line is None:
            return
        window.append(line)


def formatted(row: Row, format: str, pieces: list[str]) -> str:
    """A row as text, tsv or jsonl."""
    if format == "text":
        return f"{row.translations[0].text}\n"
    if format == "jsonl":
        return json.dumps(as_json(row, pieces), ensure_ascii=False) + "\n"
    ranked = (
        (rank, each.score, each.text.replace("\t", " "))
        for rank, each in enumerate(row.translations, 1)
    )
    return "".join(f"{row.number}\t{rank}\t{score:.6f}\t{text}\n" for rank, score, text in ranked)


def translated_rows(
    translator: Translator,
    numbered: Sequence[tuple[int, str]],
    with_alignment: bool = False,
    with_scores: bool = False,
    on_progress: Progress | None = None,
) -> list[Row]:
    """One for each numbered line, in order."""
    lines = [line for _, line in numbered]
    found = translator.translate_window(lines, on_progress)
    alignments: Iterable[Alignment | None] = itertools.repeat(None)
    if with_alignment:
        alignments = translator.align(lines, [best for best, *_ in found])
    scores: Iterator[TokenScores] | None = None
    if with_scores:
        parts = [part for translations in found for each in translations for part in each.parts]
        scores = iter(translator.likelihood_of_ids([(part.src, part.tgt) for part in parts]))
    rows = []
    for (number, source), translations, alignment in zip(numbered, found, alignments, strict=False):
        token_scores = (
            None
            if scores is None
            else [list(itertools.islice(scores, len(each.parts))) for each in translations]
        )
        rows.append(Row(number, source, translations, alignment, token_scores))
    return rows


def as_json(row: Row, pieces: list[str]) -> dict[str, Any]:
    """A row for `--format jsonl`; `pieces` are the target's. Of each part of a translation the last
    token is the end of sentence.
    """
    translations: list[dict[str, Any]] = [
        {"text": each.text, "score": each.score} for each in row.translations
    ]
    for described, parts in zip(translations, row.token_scores or [], strict=False):
        described["tokens"] = [pieces[token] for part in parts for token in (*part.ids, EOS_ID)]
        described["token_scores"] = [round(value, 6) for part in parts for value in part.log_probs]
    about = {"line": row.number, "source": row.source, "over_long": row.over_long}
    return {**about, "translations": translations}
