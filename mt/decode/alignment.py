"""Word alignments: which words of a line the words of its translation come from, by the model's own
attention.

After the search the model reads the line and writes its best translation once more. The attention
of the last decoder layer but one to the source, the mean over its heads (Garg et al. 2019, "Jointly
Learning to Align and Translate with Transformer Models"), is summed over the subwords of each word
on both sides; a target word is aligned to the source word with the most of it, the end of sentence
left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mt.data.batch import collate, to_device
from mt.data.tokenizer import Tokenizer
from mt.decode.parts import TranslatedPart, Translation
from mt.model.attention import PaddedAttention, RecordedAttention
from mt.model.transformer import Transformer

Alignment = list[tuple[int, int]]  # (source word, target word), in order


@dataclass(frozen=True)
class LinePart:
    """A line or a part of one, and its translation, with the word that each id belongs to."""

    translated: TranslatedPart
    src_words: list[int]  # of each id, the number of its word in the line; -1: of none
    tgt_words: list[int]  # the same in the line's translation


def numbered_parts(
    tokenizer: Tokenizer, lines: Sequence[str], translations: Sequence[Translation]
) -> list[tuple[int, LinePart]]:
    """The parts of all lines, each with the number of its line, words numbered through line and
    translation.
    """
    numbered = [
        (number, part)
        for number, translation in enumerate(translations)
        for part in translation.parts
    ]
    words = tokenizer.src_words([part.source.text for _, part in numbered])
    found = []
    for (number, part), src_words in zip(numbered, words, strict=True):
        source = part.source
        own = src_words[source.begin : source.begin + len(source.ids)]
        sides = (
            (own, _words_before(lines[number], source.start)),
            (
                tokenizer.tgt_words(part.tgt),
                _words_before(translations[number].text, part.start),
            ),
        )
        shifted = [
            [word if word < 0 else word + before for word in words] for words, before in sides
        ]
        found.append((number, LinePart(part, *shifted)))
    return found


def _words_before(text: str, place: int) -> int:
    """How many words of a text are before the one that stands at `place`, or begins after it."""
    before = text[:place]
    return len(before.split()) - (
        before != "" and not before[-1].isspace() and not text[place : place + 1].isspace()
    )


def align_batch(model: Transformer, parts: Sequence[LinePart]) -> list[Alignment]:
    """The words of each part that belong together, by the attention of the last decoder layer but
    one.
    """
    batch = to_device(
        collate([(part.translated.src, part.translated.tgt) for part in parts]),
        model.output_weight.device,
    )
    layer = max(0, len(model.decoder.layers) - 2)
    weights = cross_attention(model, batch.src, batch.src_mask, batch.tgt_in, layer)
    return [
        word_pairs(w, part.src_words, part.tgt_words)
        for w, part in zip(weights, parts, strict=True)
    ]


@torch.no_grad()
def cross_attention(
    model: Transformer, src: Tensor, src_mask: Tensor, tgt_in: Tensor, layer: int
) -> Tensor:
    """Weights [batch, tgt_len, src_len] of the decoder's attention to the source in `layer`, the
    mean over its heads.

    `src` [batch, src_len], `src_mask` of the same shape and `tgt_in` [batch, tgt_len] are those of
    `Transformer.forward`.
    """
    assert not model.training, "a model in training drops what is to be seen"
    seen: list[Tensor] = []
    source = PaddedAttention.over(src, src_mask)
    causal = PaddedAttention.causal(tgt_in)
    cross = RecordedAttention(source, lambda weights: seen.append(weights.mean(dim=1)))
    model.attending(src, tgt_in, source, causal, cross)
    return seen[layer].float().cpu()


def word_pairs(weights: Tensor, src_words: Sequence[int], tgt_words: Sequence[int]) -> Alignment:
    """For each target word the source word that its subwords attend to most.

    `weights` [tgt_len, src_len] has a row for each of `tgt_words`, the word of each target subword,
    and a column for each of `src_words`; further rows and columns, such as those of the end of
    sentence, and subwords of word -1 are left out.
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
