"""The parts of a line that are searched by themselves: one, or several of a line longer than what
training saw.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mt.config import AUTO, DecodeConfig
from mt.data.sentences import sentence_starts
from mt.data.tokenizer import Tokenizer

# Where a text begins in its line, the text, and its ids.
_Encoded = tuple[tuple[int, str], list[int]]


@dataclass(frozen=True)
class SourcePart:
    """A line, or a part of one, that is searched by itself."""

    ids: list[int]  # without end of sentence
    text: str  # of the sentences that were encoded together
    begin: int  # in their ids, where these are: above 0 only if the sentences were too long
    start: int  # character of the line at which the text begins


@dataclass(frozen=True)
class TranslatedPart:
    """A part of a line, and the ids of its translation, without end of sentence."""

    source: SourcePart
    tgt: list[int]
    start: int  # character of the line's translation at which this begins

    @property
    def src(self) -> list[int]:
        """The ids of the source."""
        return self.source.ids


@dataclass(frozen=True)
class Translation:
    """One translation of one line."""

    text: str
    score: (
        float  # log-probability / length**length_penalty; of a split line, the mean over its parts
    )
    parts: list[TranslatedPart]  # several if the source was split; none if the line has no words


@dataclass(frozen=True)
class Splitter:
    """Cuts lines into parts within `max_sentences` and `max_src_len`."""

    tokenizer: Tokenizer
    options: DecodeConfig

    def split(self, lines: Sequence[str]) -> list[list[SourcePart]]:
        """The parts of each line: itself if it is no longer than what training saw, none if it has
        no words.
        """
        starts = [self._part_starts(line) for line in lines]
        texts = [
            (start, line[start:end])
            for line, begins in zip(lines, starts, strict=True)
            for start, end in itertools.pairwise([*begins, len(line)])
        ]
        encoded = iter(
            zip(texts, self.tokenizer.encode_src([text for _, text in texts]), strict=True)
        )
        found: list[list[SourcePart]] = []
        for line, begins in zip(lines, starts, strict=True):
            sentences = [next(encoded) for _ in begins]
            if len(begins) > 1:
                sentences = self._packed(line, sentences)
            found.append(
                [part for (start, text), ids in sentences for part in self._cut(ids, text, start)]
            )
        return found

    def _part_starts(self, line: str) -> list[int]:
        """Where the sentences of a line begin, if it is to be split at them at all; else 0."""
        limit = self.options.max_sentences
        if limit is None or limit == AUTO:
            return [0]
        starts = sentence_starts(line)
        return starts if len(starts) > limit or len(line) > self.options.longest_src else [0]

    def _packed(self, line: str, sentences: Sequence[_Encoded]) -> list[_Encoded]:
        """Sentences of a line put together again, as many as `max_sentences` and `max_src_len`
        allow.
        """
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
        """One part, or, of too many ids, several that end at the last word boundary that fits; none
        without ids.
        """
        limit, begin = self.options.longest_src, 0
        while len(ids) - begin > limit:
            fits = range(begin + limit, begin + limit // 2, -1)
            end = next((i for i in fits if self.tokenizer.starts_word(ids[i])), begin + limit)
            yield SourcePart(ids[begin:end], text, begin, start)
            begin = end
        if begin < len(ids):
            yield SourcePart(ids[begin:], text, begin, start)
