"""Splits lines that are longer than those in training into parts, which are translated alone."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mt.config import AUTO, DecodeConfig
from mt.data.sentences import sentence_starts
from mt.data.tokenizer import Tokenizer

# ((position in the line where the text begins, text), ids of the text)
_Encoded = tuple[tuple[int, str], list[int]]


@dataclass(frozen=True)
class SourcePart:
    """A line, or a part of a line, that is translated on its own."""

    ids: list[int]  # without the end-of-sentence token
    text: str  # the sentences that were tokenized together
    # Where `ids` begins in the ids of `text`. This is above 0 if `text` itself had to be cut.
    begin: int
    start: int  # the character in the line where `text` begins


@dataclass(frozen=True)
class TranslatedPart:
    """A part of a line and its translation."""

    source: SourcePart
    tgt: list[int]  # without the end-of-sentence token
    start: int  # the character in the line's translation where this part begins

    @property
    def src(self) -> list[int]:
        """The ids of the source, without the end-of-sentence token."""
        return self.source.ids


@dataclass(frozen=True)
class Translation:
    """One translation of one line."""

    text: str
    # log-probability / length**length_penalty; for a split line, the mean over its parts
    score: float
    parts: list[TranslatedPart]  # several parts if the line was split, none if the line is empty


@dataclass(frozen=True)
class Splitter:
    """Splits lines into parts of at most `max_sentences` sentences and `max_src_len` subwords."""

    tokenizer: Tokenizer
    options: DecodeConfig

    def split(self, lines: Sequence[str]) -> list[list[SourcePart]]:
        """Return the parts of each line. A short line has one part, and an empty line has none."""
        starts = [self._part_starts(line) for line in lines]
        texts = [
            (start, line[start:end])
            for line, begins in zip(lines, starts, strict=True)
            for start, end in itertools.pairwise([*begins, len(line)])
        ]
        encoded = iter(
            zip(texts, self.tokenizer.encode_src([text for _, text in texts]), strict=True)
        )
        by_line: list[list[SourcePart]] = []
        for line, begins in zip(lines, starts, strict=True):
            sentences = [next(encoded) for _ in begins]
            if len(begins) > 1:
                sentences = self._packed(line, sentences)
            by_line.append(
                [part for (start, text), ids in sentences for part in self._cut(ids, text, start)]
            )
        return by_line

    def _part_starts(self, line: str) -> list[int]:
        """Return where each sentence of a line begins, or [0] if the line need not be split."""
        limit = self.options.max_sentences
        if limit is None or limit == AUTO:
            return [0]
        starts = sentence_starts(line)
        return starts if len(starts) > limit or len(line) > self.options.longest_src else [0]

    def _packed(self, line: str, sentences: Sequence[_Encoded]) -> list[_Encoded]:
        """Join sentences of a line into parts that are as long as the limits allow."""
        max_sentences = int(self.options.max_sentences or 1)
        packed: list[_Encoded] = []
        group: list[_Encoded] = []
        for sentence in sentences:
            num_ids = sum(len(ids) for _, ids in [*group, sentence])
            if group and (len(group) == max_sentences or num_ids > self.options.longest_src):
                packed.append(self._together(line, group))
                group = []
            group.append(sentence)
        return [*packed, self._together(line, group)]

    def _together(self, line: str, group: Sequence[_Encoded]) -> _Encoded:
        if len(group) == 1:
            return group[0]
        (start, _), _ = group[0]
        (last, text), _ = group[-1]
        whole = line[start : last + len(text)]
        return (start, whole), self.tokenizer.encode_src([whole])[0]

    def _cut(self, ids: list[int], text: str, start: int) -> Iterator[SourcePart]:
        """Yield the ids as one part, or as several parts if there are more ids than the limit.

        Each part is cut at the last word boundary within the limit.
        """
        limit, begin = self.options.longest_src, 0
        while len(ids) - begin > limit:
            candidates = range(begin + limit, begin + limit // 2, -1)
            end = next((i for i in candidates if self.tokenizer.starts_word(ids[i])), begin + limit)
            yield SourcePart(ids[begin:end], text, begin, start)
            begin = end
        if begin < len(ids):
            yield SourcePart(ids[begin:], text, begin, start)
