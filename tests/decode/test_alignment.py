"""Test word alignments with weights written by hand, against plain loops, and for whole lines."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mt.config import DecodeConfig, ModelConfig
from mt.data.spm import with_normalization
from mt.data.tokenizer import EOS_ID, Tokenizer
from mt.decode.alignment import Alignment, align_batch, pharaoh, word_pairs
from mt.decode.translator import Translation, Translator
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from tests.conftest import sample_lines

FP32 = Compute(torch.device("cpu"), torch.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        d_model=32,
        d_ff=64,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=3,
        norm="pre",
        tie_embeddings="none",
    )
    model = build_model(config, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=3)
    model.output_weight.data *= 3
    model.output_weight.data[EOS_ID] *= 2  # so that some outputs end before their limit
    for layer in model.decoder.layers:
        layer.encoder_attn.q_proj.weight.data *= 4  # so that attention is not flat
    return model.eval()


def translator(model: Transformer, tokenizer: Tokenizer, **options: object) -> Translator:
    decode = DecodeConfig(**{"beam_size": 3, "max_len_a": 1.0, "max_len_b": 3, **options})
    return Translator(model, tokenizer, decode, FP32)


def aligned(
    model: Transformer, tokenizer: Tokenizer, lines: Sequence[str], **options: object
) -> list[tuple[Translation, Alignment]]:
    subject = translator(model, tokenizer, **options)
    best = [found[0] for found in subject.translate_stream(lines)]
    return list(zip(best, subject.align(lines, best), strict=True))


BY_HAND = {
    "one subword a word": ([[0.9, 0.1], [0.2, 0.8]], [0, 1], [0, 1], [(0, 0), (1, 1)]),
    "the subwords of a source word stand together": ([[0.3, 0.3, 0.4]], [0, 0, 1], [0], [(0, 0)]),
    "the subwords of a target word are averaged": (
        [[0.6, 0.4], [0.1, 0.9]],
        [0, 1],
        [0, 0],
        [(1, 0)],
    ),
    "columns after the words are left out": ([[0.1, 0.2, 0.7]], [0, 1], [0], [(1, 0)]),
    "rows after the words are left out": ([[0.6, 0.4], [0.0, 1.0]], [0, 1], [0], [(0, 0)]),
    "subwords of no word are left out": (
        [[0.1, 0.9], [0.7, 0.3], [0.2, 0.8]],
        [0, 1],
        [0, -1, 1],
        [(1, 0), (1, 1)],
    ),
    "numbers go on in a later part": ([[0.1, 0.9]], [7, 8], [5], [(8, 5)]),
    "a word without subwords is not aligned": (
        [[0.2, 0.8], [0.7, 0.3]],
        [0, 2],
        [1, 3],
        [(2, 1), (0, 3)],
    ),
    "no source words": ([[0.5, 0.5]], [-1], [0], []),
    "no target words": ([[0.5, 0.5]], [0], [], []),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_pairs_of_weights_written_by_hand(kind: str) -> None:
    weights, src_words, tgt_words, expected = BY_HAND[kind]
    assert word_pairs(torch.tensor(weights), src_words, tgt_words) == expected


def by_loops(weights: Tensor, src_words: Sequence[int], tgt_words: Sequence[int]) -> Alignment:
    """Compute an alignment from its definition, cell by cell."""
    found = []
    for tgt in sorted(set(tgt_words)):
        rows = [i for i, word in enumerate(tgt_words) if word == tgt]
        mean = {
            src: sum(
                float(weights[i, j])
                for i in rows
                for j, word in enumerate(src_words)
                if word == src
            )
            / len(rows)
            for src in set(src_words)
        }
        found.append((max(mean, key=lambda src: mean[src]), tgt))
    return found


def test_pairs_are_those_of_loops_over_every_cell() -> None:
    draw, generator = random.Random(1), torch.Generator().manual_seed(1)
    for _ in range(50):
        src_words, tgt_words = (
            sorted(draw.randrange(6) for _ in range(draw.randint(1, 9))) for _ in range(2)
        )
        weights = torch.rand(
            len(tgt_words) + 1, len(src_words) + 1, generator=generator, dtype=torch.float64
        )
        assert word_pairs(weights, src_words, tgt_words) == by_loops(weights, src_words, tgt_words)


def test_pharaoh_is_source_and_target_word_with_a_hyphen() -> None:
    assert pharaoh([(0, 0), (1, 2)]) == "0-0 1-2"
    assert pharaoh([]) == ""


def test_every_word_of_a_translation_is_aligned_to_a_word_of_its_line(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    lines = sample_lines("test", "de", 20)
    seen = set()
    for line, (best, alignment) in zip(lines, aligned(model, tokenizer, lines), strict=True):
        assert sorted(tgt for _, tgt in alignment) == list(range(len(best.text.split())))
        assert all(src < len(line.split()) for src, _ in alignment)
        assert alignment == sorted(alignment)
        seen.update(src for src, _ in alignment)
    assert len(seen) > 4  # not all words are aligned to the same word


def test_each_line_is_aligned_as_if_it_were_alone_and_in_its_place(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    lines = ["", *sample_lines("test", "de", 12), " \t"]
    together = [alignment for _, alignment in aligned(model, tokenizer, lines)]
    assert together == [aligned(model, tokenizer, [line])[0][1] for line in lines]
    assert together[0] == together[-1] == []
    assert all(together[1:-1])


def test_the_alignment_is_the_models_attention_to_its_own_translation(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    """Compare with the weights of a single pair, in the second-to-last of three layers."""
    from mt.data.tokenizer import BOS_ID
    from mt.report.attention import attention_maps

    subject = translator(model, tokenizer)
    for line in sample_lines("test", "de", 5):
        [src] = tokenizer.encode_src([line])
        tgt = subject.search([src])[0][0].tokens
        weights = attention_maps(model, [*src, EOS_ID], [BOS_ID, *tgt]).cross[1].mean(dim=0)
        expected = by_loops(weights, tokenizer.src_words([line])[0], tokenizer.tgt_words(tgt))
        assert aligned(model, tokenizer, [line])[0][1] == sorted(expected)


def test_the_words_of_a_line_in_parts_are_numbered_through(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    sentences = sample_lines("test", "de", 3)
    limit = max(len(ids) for ids in tokenizer.encode_src(sentences))
    [(found, alignment)] = aligned(model, tokenizer, [" ".join(sentences)], max_src_len=limit)
    expected, src_shift, tgt_shift = [], 0, 0
    assert len(found.parts) > 1
    for part in found.parts:
        text = tokenizer.decode_src(part.src)
        [(alone, of_part)] = aligned(model, tokenizer, [text])
        assert of_part
        expected += [(src + src_shift, tgt + tgt_shift) for src, tgt in of_part]
        src_shift, tgt_shift = src_shift + len(text.split()), tgt_shift + len(alone.text.split())
    assert alignment == sorted(expected)
    assert tgt_shift == len(found.text.split())


def test_spaces_that_normalization_adds_or_drops_do_not_count_as_words(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Check that words are counted in the line as it stands in the file.

    One line has extra spaces. Another has an accent (U+00B4), which the older normalization turns
    into a space and an accent.
    """
    plain, odd = "Der Hund schläft heute .", "  Der \u00a0 Hund\tschläft   heute  . "
    for spm in ("src.spm", "tgt.spm"):
        model_file = with_normalization((tokenizer.src_model.parent / spm).read_bytes(), "nmt_nfkc")
        (tmp_path / spm).write_bytes(model_file)
    older = Tokenizer.load(tmp_path)
    (a, first), (b, second) = aligned(model, tokenizer, [plain, odd])
    [(_, third)] = aligned(model, older, ["Der Hu\u00b4nd schläft ."])
    assert (a.text, first) == (b.text, second)
    assert len(older.decode_src(older.encode_src(["Der Hu\u00b4nd schläft ."])[0]).split()) == 5
    assert third
    assert {src for src, _ in third} <= {0, 1, 2, 3}


def test_where_memory_runs_out_half_as_many_at_once_give_the_same(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = sample_lines("test", "de", 8)
    best, expected = zip(*aligned(model, tokenizer, lines), strict=True)
    sizes = []

    def tight(model: Transformer, parts: Sequence[Any]) -> list[Alignment]:
        sizes.append(len(parts))
        if len(parts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return align_batch(model, parts)

    monkeypatch.setattr("mt.decode.translator.align_batch", tight)
    assert translator(model, tokenizer).align(lines, best) == list(expected)
    assert max(sizes) > 2
