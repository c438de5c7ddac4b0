"""Word alignments: which source word each target word comes from, judged by the model's attention.

After the search, the model reads each line together with its best translation. The cross-attention
of the second-to-last decoder layer is averaged over the heads (Garg et al. 2019, "Jointly Learning
to Align and Translate with Transformer Models"), and summed over the subwords for each source word
and target word. Each target word is aligned to the source word with the largest sum.
End-of-sentence tokens are ignored.
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

Alignment = list[tuple[int, int]]  # sorted pairs (source word, target word)


@dataclass(frozen=True)
class LinePart:
    """A translated part of a line, with the words that its ids belong to."""

    translated: TranslatedPart
    src_words: list[int]  # for each source id, the index of its word in the line, or -1 for no word
    tgt_words: list[int]  # for each target id, the index of its word in the translation, or -1


def numbered_parts(
    tokenizer: Tokenizer, lines: Sequence[str], translations: Sequence[Translation]
) -> list[tuple[int, LinePart]]:
    """Return (line index, part) for the parts of all lines.

    Words are counted from the start of the line, not from the start of the part.
    """
    numbered = [
        (number, part)
        for number, translation in enumerate(translations)
        for part in translation.parts
    ]
    words = tokenizer.src_words([part.source.text for _, part in numbered])
    line_parts = []
    for (number, part), src_words in zip(numbered, words, strict=True):
        source = part.source
        part_words = src_words[source.begin : source.begin + len(source.ids)]
        sides = (
            (part_words, _words_before(lines[number], source.start)),
            (
                tokenizer.tgt_words(part.tgt),
                _words_before(translations[number].text, part.start),
            ),
        )
        shifted = [
            [word if word < 0 else word + before for word in words] for words, before in sides
        ]
        line_parts.append((number, LinePart(part, *shifted)))
    return line_parts


def _words_before(text: str, place: int) -> int:
    """Count the words that end before the character `place`."""
    before = text[:place]
    return len(before.split()) - (
        before != "" and not before[-1].isspace() and not text[place : place + 1].isspace()
    )


def align_batch(model: Transformer, parts: Sequence[LinePart]) -> list[Alignment]:
    """Align the words of each part, in one batch."""
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
    """Return the cross-attention weights of `layer`, averaged over its heads.

    `src` and `src_mask` [batch, src_len] and `tgt_in` [batch, tgt_len] are the arguments of
    `Transformer.forward`; the result is [batch, tgt_len, src_len].
    """
    assert not model.training, "dropout would change the weights"
    by_layer: list[Tensor] = []
    source = PaddedAttention.over(src, src_mask)
    causal = PaddedAttention.causal(tgt_in)
    cross = RecordedAttention(source, lambda weights: by_layer.append(weights.mean(dim=1)))
    model.attending(src, tgt_in, source, causal, cross)
    return by_layer[layer].float().cpu()


def word_pairs(weights: Tensor, src_words: Sequence[int], tgt_words: Sequence[int]) -> Alignment:
    """Pair each target word with the source word that its subwords attend to most.

    `weights` [tgt_len, src_len] has a row for each target subword and a column for each source
    subword. `tgt_words` and `src_words` say which word each subword belongs to. Subwords of word
    -1 are ignored, as are additional rows and columns, such as those of end-of-sentence tokens.
    """
    src_kept, tgt_kept = (
        [i for i, word in enumerate(words) if word >= 0] for words in (src_words, tgt_words)
    )
    if not src_kept or not tgt_kept:
        return []
    src_numbers, src_place = torch.tensor([src_words[i] for i in src_kept]).unique(
        return_inverse=True
    )
    tgt_numbers, tgt_place = torch.tensor([tgt_words[i] for i in tgt_kept]).unique(
        return_inverse=True
    )
    weights = weights[tgt_kept][:, src_kept]
    by_source = weights.new_zeros(len(tgt_kept), len(src_numbers)).index_add_(1, src_place, weights)
    by_word = weights.new_zeros(len(tgt_numbers), len(src_numbers))
    by_word.index_add_(0, tgt_place, by_source)
    return list(zip(src_numbers[by_word.argmax(dim=1)].tolist(), tgt_numbers.tolist(), strict=True))


def pharaoh(alignment: Alignment) -> str:
    """Format an alignment like `0-0 1-2`: pairs of source word and target word, from 0."""
    return " ".join(f"{src}-{tgt}" for src, tgt in alignment)
