"""The output of `mt translate`: translations of lines as text, tsv or jsonl."""

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

FIRST = 2048  # number of lines in the first window
PAUSE = 0.05  # seconds without a new line until the lines read so far are translated


@dataclass(frozen=True)
class Row:
    """A line and its translations, with the best one first."""

    number: int  # from 1
    source: str
    translations: list[Translation]
    alignment: Alignment | None  # of the best translation; None if not requested
    # [translation][part]; None if not requested.
    token_scores: list[list[TokenScores]] | None

    @property
    def over_long(self) -> bool:
        """Whether the line was translated in parts."""
        return len(self.translations[0].parts) > 1


class Written(NamedTuple):
    """The output for one line."""

    text: str
    alignment: str
    over_long: bool


def outputs(
    world: World,
    translator: Translator,
    windows: Iterator[list[str]],
    format: str,
    with_alignment: bool = False,
    on_progress: Progress | None = None,
) -> Iterator[list[Written]]:
    """Yield the output for each window of lines, in order.

    The ranks share the lines of each window, and all of them receive the whole output.
    """
    pieces = translator.tokenizer.tgt_pieces

    def translate(numbered: Sequence[tuple[int, str]]) -> list[Written]:
        scores = format == "jsonl"
        rows = translated_rows(translator, numbered, with_alignment, scores, on_progress)
        return [
            Written(formatted(row, format, pieces), pharaoh(row.alignment or []), row.over_long)
            for row in rows
        ]

    number = 1
    while window := world.broadcast_from_rank0(
        lambda: next(windows, [])
    ):  # only rank 0 reads the input
        written = world.map_sharded(translate, list(enumerate(window, number)))
        yield [Written(*each) for each in written]
        number += len(window)


def read_ahead(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield windows of lines. The first one has `FIRST` lines, and the size doubles up to `size`.

    The first windows are small, so that some output is written soon. If reading fails, the lines
    before the error are still yielded.
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
    """Yield windows of at most `size` lines from a pipe or terminal.

    A window ends when the input pauses. The lines are read in a separate thread.
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
    """Format a row as text, tsv or jsonl."""
    if format == "text":
        return f"{row.translations[0].text}\n"
    if format == "jsonl":
        return json.dumps(as_json(row, pieces), ensure_ascii=False) + "\n"
    ranked = (
        (rank, translation.score, translation.text.replace("\t", " "))
        for rank, translation in enumerate(row.translations, 1)
    )
    return "".join(f"{row.number}\t{rank}\t{score:.6f}\t{text}\n" for rank, score, text in ranked)


def translated_rows(
    translator: Translator,
    numbered: Sequence[tuple[int, str]],
    with_alignment: bool = False,
    with_scores: bool = False,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Translate numbered lines, and return a row for each of them, in order."""
    lines = [line for _, line in numbered]
    by_line = translator.translate_window(lines, on_progress)
    alignments: Sequence[Alignment | None] = [None] * len(lines)
    if with_alignment:
        alignments = translator.align(lines, [best for best, *_ in by_line])
    scores: Sequence[list[list[TokenScores]] | None] = [None] * len(lines)
    if with_scores:
        scores = _token_scores(translator, by_line)
    return [
        Row(number, line, hyps, alignment, token_scores)
        for (number, line), hyps, alignment, token_scores in zip(
            numbered, by_line, alignments, scores, strict=True
        )
    ]


def _token_scores(
    translator: Translator, by_line: list[list[Translation]]
) -> list[list[list[TokenScores]]]:
    """Return the token scores [line][translation][part]."""
    parts = [part for hyps in by_line for translation in hyps for part in translation.parts]
    scores = iter(translator.likelihood_of_ids([(part.src, part.tgt) for part in parts]))
    return [[[next(scores) for _ in translation.parts] for translation in hyps] for hyps in by_line]


def as_json(row: Row, pieces: list[str]) -> dict[str, Any]:
    """Return a row as an object for `--format jsonl`.

    `pieces` is the target vocabulary. If a translation has several parts, the tokens of each
    part end with the end-of-sentence token.
    """
    translations: list[dict[str, Any]] = [
        {"text": translation.text, "score": translation.score} for translation in row.translations
    ]
    for described, parts in zip(translations, row.token_scores or [], strict=False):
        described["tokens"] = [pieces[token] for part in parts for token in (*part.ids, EOS_ID)]
        described["token_scores"] = [round(value, 6) for part in parts for value in part.log_probs]
    about = {"line": row.number, "source": row.source, "over_long": row.over_long}
    return {**about, "translations": translations}
