"""`mt translate`: lines, their translations, and what else is to be told of them."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from mt.data.tokenizer import EOS_ID
from mt.decode.alignment import Aligner, Alignment
from mt.decode.scorer import Scorer, TokenScores
from mt.decode.translator import Translation, Translator

CHUNK = 1024  # lines that are aligned or scored together


@dataclass(frozen=True)
class Row:
    """A line and its translations, best first."""

    number: int  # from 1
    source: str
    translations: list[Translation]
    alignment: Alignment | None                 # of the best translation, where it was asked for
    token_scores: list[list[TokenScores]] | None  # of each part of each translation, where they were asked for


def translated_rows(
    translator: Translator, lines: Iterable[str], aligner: Aligner | None = None, scorer: Scorer | None = None
) -> Iterator[Row]:
    """One for each line, in order."""
    lines, sources = itertools.tee(lines)
    found = zip(itertools.count(1), sources, translator.translate_stream(lines))
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
