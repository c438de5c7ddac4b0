"""Word alignments: which words of a line the words of its translation come from, by the model's own attention.

After the search the model reads the line and writes its best translation once more. The attention of the last decoder layer but one to the
source, the mean over its heads (Garg et al. 2019, "Jointly Learning to Align and Translate with Transformer Models"), is summed over the
subwords of each word on both sides; a target word is aligned to the source word with the most of it, the end of sentence left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mt.data.batch import collate
from mt.data.tokenizer import Tokenizer
from mt.decode.buckets import map_in_buckets
from mt.decode.loading import load_model
from mt.decode.translator import TranslatedPart, Translation
from mt.model.maps import cross_attention
from mt.model.transformer import Transformer
from mt.runtime.device import in_halves
from mt.runtime.workers import Workers

MAX_TOKENS = 4096  # rows x longest side of a batch

Alignment = list[tuple[int, int]]  # (source word, target word), in order


@dataclass(frozen=True)
class _Pair:
    """A line or a part of one, and its translation."""

    part: TranslatedPart
    src_words: list[int]  # of each id, the number of its word in the line; -1: of none
    tgt_words: list[int]  # the same in the line's translation


class Aligner:
    """A model that tells what it looked at; in fp32, in whatever precision it translated."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, workers: Workers | None = None
    ) -> None:
        self.tokenizer, self.workers = tokenizer, workers or Workers()
        layer = max(0, len(model.decoder.layers) - 2)
        self._align_batch = self.workers.share(
            partial(in_halves, partial(align_batch, model, layer))
        )

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device, workers: Workers | None = None
    ) -> "Aligner":
        """Open a model folder, or a run folder (its best checkpoint). Raises `CheckpointError`."""
        loaded = load_model(Path(path), device)
        return cls(loaded.model, loaded.tokenizer, workers)

    def align(self, lines: Sequence[str], translations: Sequence[Translation]) -> list[Alignment]:
        """The alignment of each line with its translation."""
        numbered = [
            (number, part)
            for number, translation in enumerate(translations)
            for part in translation.parts
        ]
        words = self.tokenizer.src_words([part.source.text for _, part in numbered])
        pairs = [
            self._pair(lines[number], translations[number].text, part, src_words)
            for (number, part), src_words in zip(numbered, words, strict=True)
        ]
        found: list[set[tuple[int, int]]] = [
            set() for _ in lines
        ]  # a word that was cut in two may come twice
        for (number, _), alignment in zip(numbered, self._align_pairs(pairs), strict=True):
            found[number].update(alignment)
        return [sorted(alignment) for alignment in found]

    def _pair(
        self, line: str, translation: str, part: TranslatedPart, src_words: list[int]
    ) -> _Pair:
        """A part, its words numbered through the line and through its translation."""
        source = part.source
        own = src_words[source.begin : source.begin + len(source.ids)]
        src_before, tgt_before = (
            _words_before(line, source.start),
            _words_before(translation, part.start),
        )
        numbers = [
            [word if word < 0 else word + before for word in words]
            for words, before in (
                (own, src_before),
                (self.tokenizer.tgt_words(part.tgt), tgt_before),
            )
        ]
        return _Pair(part, *numbers)

    def _align_pairs(self, pairs: Sequence[_Pair]) -> list[Alignment]:
        return map_in_buckets(
            self.workers,
            self._align_batch,
            pairs,
            [(pair.part.src, pair.part.tgt) for pair in pairs],
            MAX_TOKENS,
        )


def _words_before(text: str, place: int) -> int:
    """How many words of a text are before the one that stands at `place`, or begins after it."""
    before = text[:place]
    return len(before.split()) - (
        before != "" and not before[-1].isspace() and not text[place : place + 1].isspace()
    )


def align_batch(model: Transformer, layer: int, pairs: Sequence[_Pair]) -> list[Alignment]:
    """The words of each pair that belong together, by the attention of one decoder layer."""
    device = model.output_weight.device
    batch = collate([(pair.part.src, pair.part.tgt) for pair in pairs])
    weights = cross_attention(
        model, batch.src.to(device), batch.src_mask.to(device), batch.tgt_in.to(device), layer
    )
    return [
        word_pairs(w, pair.src_words, pair.tgt_words)
        for w, pair in zip(weights, pairs, strict=True)
    ]


def word_pairs(weights: Tensor, src_words: Sequence[int], tgt_words: Sequence[int]) -> Alignment:
    """For each target word the source word that its subwords attend to most.

    `weights` [tgt_len, src_len] has a row for each of `tgt_words`, the word of each target subword, and a column for each of `src_words`;
    further rows and columns, such as those of the end of sentence, and subwords of word -1 are left out.
    """
    src_kept, tgt_kept = (
        [i for i, word in enumerate(words) if word >= 0] for words in (src_words, tgt_words)
    )
    if not src_kept or not tgt_kept:
        return []
    src_found, src_place = torch.tensor([src_words[i] for i in src_kept]).unique(
        return_inverse=True
    )
    tgt_found, tgt_place = torch.tensor([tgt_words[i] for i in tgt_kept]).unique(
        return_inverse=True
    )
    weights = weights[tgt_kept][:, src_kept]
    by_source = weights.new_zeros(len(tgt_kept), len(src_found)).index_add_(1, src_place, weights)
    by_word = weights.new_zeros(len(tgt_found), len(src_found)).index_add_(
        0, tgt_place, by_source
    )  # the mean has the same maximum
    return list(zip(src_found[by_word.argmax(dim=1)].tolist(), tgt_found.tolist(), strict=True))


def pharaoh(alignment: Alignment) -> str:
    """`0-0 1-2`: source and target word of each pair, counted from 0."""
    return " ".join(f"{src}-{tgt}" for src, tgt in alignment)
