"""`mt translate`: lines, their translations, and what else is to be told of them."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mt.data.tokenizer import EOS_ID
from mt.decode.alignment import Aligner, Alignment, pharaoh
from mt.decode.scorer import Scorer, TokenScores
from mt.decode.translator import WINDOW, Translation, Translator
from mt.distributed import World

CHUNK = 1024  # lines that are aligned or scored together


@dataclass(frozen=True)
class Row:
    """A line and its translations, best first."""

    number: int  # from 1
    source: str
    translations: list[Translation]
    alignment: Alignment | None                 # of the best translation, where it was asked for
    token_scores: list[list[TokenScores]] | None  # of each part of each translation, where they were asked for


def outputs(
    world: World, translator: Translator, lines: Iterable[str], format: str, aligner: Aligner | None = None, scorer: Scorer | None = None
) -> Iterator[tuple[str, str]]:
    """(what to write, word alignments) of each line, in order and on all ranks, which share the lines, a window each at a time."""
    pieces = translator.tokenizer.tgt_pieces

    def of(numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
        for row in translated_rows(translator, numbered, aligner, scorer):
            yield formatted(row, format, pieces), pharaoh(row.alignment or [])

    numbered = enumerate(lines, 1)
    if world.is_alone:
        yield from of(numbered)
        return
    while window := world.first(lambda: list(itertools.islice(numbered, WINDOW * world.size))):  # only the first rank reads
        yield from world.shared(lambda part: list(of(part)), window)


def formatted(row: Row, format: str, pieces: list[str]) -> str:
    """A row as text, tsv or jsonl."""
    if format == "text":
        return f"{row.translations[0].text}\n"
    if format == "jsonl":
        return json.dumps(as_json(row, pieces), ensure_ascii=False) + "\n"
    ranked = ((rank, each.score, each.text.replace("\t", " ")) for rank, each in enumerate(row.translations, 1))
    return "".join(f"{row.number}\t{rank}\t{score:.6f}\t{text}\n" for rank, score, text in ranked)


def translated_rows(
    translator: Translator, numbered: Iterable[tuple[int, str]], aligner: Aligner | None = None, scorer: Scorer | None = None
) -> Iterator[Row]:
    """One for each numbered line, in order."""
    numbered, again = itertools.tee(numbered)
    each_best_first = translator.translate_stream(line for _, line in numbered)
    found = ((number, source, found) for (number, source), found in zip(again, each_best_first, strict=True))
    while chunk := list(itertools.islice(found, CHUNK)):
        alignments: Iterable[Alignment | None] = itertools.repeat(None)
        if aligner is not None:
            alignments = aligner.align([source for _, source, _ in chunk], [best for _, _, (best, *_) in chunk])
        scores: Iterator[TokenScores] | None = None
        if scorer is not None:
            parts = [part for _, _, found_here in chunk for each in found_here for part in each.parts]
            scores = iter(scorer.score_ids([(part.src, part.tgt) for part in parts]))
        for (number, source, translations), alignment in zip(chunk, alignments, strict=False):
            token_scores = None if scores is None else [list(itertools.islice(scores, len(each.parts))) for each in translations]
            yield Row(number, source, translations, alignment, token_scores)


def as_json(row: Row, pieces: list[str]) -> dict[str, Any]:
    """A row for `--format jsonl`; `pieces` are the target's. Of each part of a translation the last token is the end of sentence."""
    translations: list[dict[str, Any]] = [{"text": each.text, "score": each.score} for each in row.translations]
    for described, parts in zip(translations, row.token_scores or [], strict=False):
        described["tokens"] = [pieces[token] for part in parts for token in (*part.ids, EOS_ID)]
        described["token_scores"] = [round(value, 6) for part in parts for value in part.log_probs]
    over_long = len(row.translations[0].parts) > 1
    return {"line": row.number, "source": row.source, "over_long": over_long, "translations": translations}
