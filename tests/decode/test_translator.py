"""Test how text is translated: order, batches, empty and over-long lines, streaming, options.

The model is untrained. Its weights are large, so that its choices are clear.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from mt.config import DecodeConfig, ModelConfig
from mt.data.sentences import sentence_starts
from mt.data.tokenizer import EOS_ID, Tokenizer
from mt.decode.output import translated_rows
from mt.decode.search import Hypothesis
from mt.decode.translator import Searcher, Translator, search_options
from mt.errors import ConfigError, MTError
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
        encoder_layers=1,
        decoder_layers=1,
        norm="pre",
        tie_embeddings="none",
    )
    model = build_model(config, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=3)
    model.output_weight.data *= 3
    model.output_weight.data[EOS_ID] *= 2  # so that some outputs end before their limit
    return model


@pytest.fixture
def lines() -> list[str]:
    """Return lines of mixed lengths. Every tenth line is empty or blank."""
    found = sample_lines("test", "de", 30)
    found[::10] = ["", " ", "\t"]
    return found


OPTIONS = {"beam_size": 3, "max_len_a": 0.5, "max_len_b": 3}


class Recording(Translator):
    """A translator that records the batches it searches."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.searched: list[list[list[int]]] = []
        self._search = partial(self._record, self._search)

    def _record(self, search: Any, sources: list[list[int]]) -> list[list[Hypothesis]]:
        self.searched.append(sources)
        return search(sources)


def translator(model: Transformer, tokenizer: Tokenizer, **options: object) -> Recording:
    return Recording(model, tokenizer, DecodeConfig(**{**OPTIONS, **options}), FP32)


def test_each_line_is_translated_as_if_it_were_alone_and_in_its_place(
    model: Transformer, tokenizer: Tokenizer, lines: list[str]
) -> None:
    together = translator(model, tokenizer).translate(lines)
    assert len(together) == len(lines)
    assert together == [translator(model, tokenizer).translate([line])[0] for line in lines]
    assert len(set(together)) > 20  # the translations differ, so a wrong order would be noticed


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 7},
        {"batch_size": 64},
        {"max_tokens": 1},
        {"max_tokens": 100},
    ],
)
@pytest.mark.parametrize("beam_size", [1, 3])
def test_the_cut_into_batches_makes_no_difference(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    beam_size: int,
    options: dict[str, int],
) -> None:
    expected = translator(model, tokenizer, beam_size=beam_size).translate(lines)
    assert translator(model, tokenizer, beam_size=beam_size, **options).translate(lines) == expected


def test_shuffled_lines_give_shuffled_translations(
    model: Transformer, tokenizer: Tokenizer, lines: list[str]
) -> None:
    expected = translator(model, tokenizer).translate(lines)
    order = list(range(len(lines)))
    random.Random(1).shuffle(order)
    assert translator(model, tokenizer).translate([lines[i] for i in order]) == [
        expected[i] for i in order
    ]


def test_batches_hold_at_most_so_many_sentences_and_padded_tokens(
    model: Transformer, tokenizer: Tokenizer, lines: list[str]
) -> None:
    subject = translator(model, tokenizer, batch_size=9, max_tokens=150)
    subject.translate(lines)
    for batch in subject.searched:
        assert len(batch) <= 9
        assert len(batch) == 1 or len(batch) * (max(map(len, batch)) + 1) <= 150
    assert sum(map(len, subject.searched)) == sum(bool(line.strip()) for line in lines)


def test_an_empty_line_stays_empty_and_is_not_searched_for(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    subject = translator(model, tokenizer, nbest=3)
    found = list(subject.translate_stream(["", "  \t "]))
    assert [[(t.text, t.score, t.parts) for t in each] for each in found] == [
        [("", 0.0, [])],
        [("", 0.0, [])],
    ]
    assert not subject.searched
    assert subject.translate([]) == []


# --- over-long lines


def test_an_over_long_line_is_split_counted_and_nothing_of_it_is_lost(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    words = sample_lines("test", "de", 3)
    long, short = " ".join(words), "Er kam."
    [ids, short_ids] = tokenizer.encode_src([long, short])
    subject = translator(model, tokenizer, max_src_len=10, batch_size=1)
    assert len(short_ids) <= 10 < len(ids)
    [[split], [whole]] = list(subject.translate_stream([long, short]))
    assert len(split.parts) > 1 == len(whole.parts)
    assert [part.src for part in whole.parts] == [short_ids]
    parts = [part for [part] in subject.searched if part != short_ids]
    assert len(split.parts) == len(parts) > 2
    assert [i for part in split.parts for i in part.src] == ids
    assert all(len(part) <= 10 for part in parts)
    assert sorted(i for part in parts for i in part) == sorted(ids)
    assert [i for part in subject._splitter._cut(ids, long, 0) for i in part.ids] == ids


def test_a_split_line_is_the_translations_of_its_parts_and_their_mean_score(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    long = " ".join(sample_lines("test", "de", 4))
    subject = translator(model, tokenizer, max_src_len=12)
    [[found]] = list(subject.translate_stream([long]))
    pieces = [part.ids for part in subject._splitter._cut(tokenizer.encode_src([long])[0], long, 0)]
    hyps = [translator(model, tokenizer)._search([part])[0][0] for part in pieces]
    assert found.text == " ".join(
        text for hyp in hyps if (text := tokenizer.decode_tgt(hyp.tokens))
    )
    assert found.score == pytest.approx(sum(hyp.score for hyp in hyps) / len(hyps), abs=1e-5)


def test_a_line_is_split_between_words_where_it_can_be(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    subject = translator(model, tokenizer, max_src_len=30)
    parts = [
        part.ids
        for part in subject._splitter._cut(
            tokenizer.encode_src([" ".join(sample_lines("test", "de", 5))])[0], "", 0
        )
    ]
    assert len(parts) > 2
    assert all(tokenizer.starts_word(part[0]) for part in parts)
    endless = tokenizer.encode_src(["x" * 100])[0]
    cut = [part.ids for part in subject._splitter._cut(endless, "", 0)]
    assert [len(part) for part in cut[:-1]] == [30] * (len(cut) - 1)
    assert [i for part in cut for i in part] == endless


@pytest.mark.parametrize("extra", [0, 1])
def test_only_a_line_above_the_limit_is_split(
    model: Transformer, tokenizer: Tokenizer, extra: int
) -> None:
    line = sample_lines("test", "de", 1)[0]
    limit = len(tokenizer.encode_src([line])[0]) - extra
    subject = translator(model, tokenizer, max_src_len=limit)
    [[found]] = subject.translate_window([line])
    assert (len(found.parts) > 1) == extra


# --- streaming, n-best, options


def test_a_stream_is_read_a_window_ahead_and_no_further(
    model: Transformer, tokenizer: Tokenizer, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = translator(model, tokenizer).translate(lines)
    monkeypatch.setattr("mt.decode.translator.WINDOW", 7)
    read = 0

    def source() -> Iterator[str]:
        nonlocal read
        for line in lines:
            read += 1
            yield line

    found = []
    for number, translations in enumerate(
        translator(model, tokenizer).translate_stream(source()), 1
    ):
        found.append(translations[0].text)
        assert number <= read <= -(-number // 7) * 7
    assert found == expected


def test_nbest_gives_so_many_translations_best_first(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    lines = sample_lines("test", "de", 5)
    best = list(translator(model, tokenizer).translate_stream(lines))
    three = list(translator(model, tokenizer, nbest=3).translate_stream(lines))
    for [first], found in zip(best, three, strict=True):
        assert len(found) == 3
        assert found[0] == first
        assert [t.score for t in found] == sorted((t.score for t in found), reverse=True)
    split = list(translator(model, tokenizer, nbest=3, max_src_len=8).translate_stream(lines))
    assert all(len(found) == 3 and len(found[0].parts) > 1 for found in split)


def test_translating_leaves_dropout_off(model: Transformer, tokenizer: Tokenizer) -> None:
    line = sample_lines("test", "de", 1)
    expected = translator(model, tokenizer).translate(line)
    model.train()
    assert translator(model, tokenizer).translate(line) == expected


def test_options_override_the_models_own_and_none_leaves_one_as_it_is() -> None:
    own = DecodeConfig(beam_size=4, length_penalty=0.6)
    assert search_options(own, {"beam_size": 2, "length_penalty": None}) == DecodeConfig(
        beam_size=2, length_penalty=0.6
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"beam_size": 0}, "beam_size"),
        ({"beam_size": 2, "nbest": 3}, "nbest: 3 is larger than beam_size 2"),
        ({"length_penalty": -1.0}, "length_penalty"),
        ({"beamsize": 3}, "beamsize"),
        ({"batch_size": "8"}, "batch_size"),
        ({"max_len_b": 0, "max_tokens": 0}, "max_len_b.*; max_tokens"),
    ],
)
def test_bad_options_are_a_config_error_that_names_them(
    overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        search_options(DecodeConfig(), overrides)


def test_where_memory_runs_out_half_as_many_at_once_give_the_same(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    translator = Translator(model, tokenizer, DecodeConfig(batch_size=16), FP32)
    expected = translator.translate(lines)
    real, sizes = Searcher.__call__, []

    def tight(self: Searcher, sources: list[list[int]]) -> list[list[Hypothesis]]:
        sizes.append(len(sources))
        if len(sources) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, sources)

    monkeypatch.setattr(Searcher, "__call__", tight)
    assert translator.translate(lines) == expected
    assert max(sizes) > 3
    monkeypatch.setattr(
        Searcher,
        "__call__",
        lambda self, _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory")),
    )
    with pytest.raises(MTError, match="a single sentence"):
        translator.translate(lines[1:2])


def test_another_error_than_out_of_memory_is_no_reason_for_halves(
    model: Transformer, tokenizer: Tokenizer, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    translator, tried = Translator(model, tokenizer, DecodeConfig(), FP32), []

    def broken(self: Searcher, sources: list[list[int]]) -> list[list[Hypothesis]]:
        tried.append(len(sources))
        raise RuntimeError("something else")

    monkeypatch.setattr(Searcher, "__call__", broken)
    with pytest.raises(RuntimeError, match="something else"):
        translator.translate(lines)
    assert len(tried) == 1


# --- lines of several sentences


@pytest.mark.parametrize("max_sentences", [1, 2, 3])
def test_a_line_of_more_sentences_than_training_saw_is_translated_in_parts(
    model: Transformer, tokenizer: Tokenizer, max_sentences: int
) -> None:
    sentences = [line for line in sample_lines("test", "de", 9) if len(sentence_starts(line)) == 1][
        :7
    ]
    subject = translator(model, tokenizer, max_sentences=max_sentences)
    groups = [
        " ".join(sentences[i : i + max_sentences]) for i in range(0, len(sentences), max_sentences)
    ]
    [[found], [other]] = list(subject.translate_stream([" ".join(sentences), sentences[0]]))
    assert len(found.parts) > 1 == len(other.parts)
    assert [part.source.text.strip() for part in found.parts] == groups
    assert found.text == " ".join(
        text for text in translator(model, tokenizer).translate(groups) if text
    )


def test_sentences_together_stay_within_what_training_saw(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    sentences = sample_lines("test", "de", 10)
    subject = translator(model, tokenizer, max_sentences=100, max_src_len=120)
    [[found]] = list(subject.translate_stream([" ".join(sentences)]))
    assert all(len(part.src) <= 120 for part in found.parts)
    assert 2 < len(found.parts) < len(sentences)
    assert "".join(part.source.text for part in found.parts) == " ".join(sentences)
    whole = translator(model, tokenizer, max_sentences=100)
    assert len(whole.translate_window([" ".join(sentences)])[0][0].parts) == 1


def test_parts_are_joined_without_a_space_in_a_language_without_spaces(
    model: Transformer, tokenizer: Tokenizer
) -> None:
    line = " ".join(sample_lines("test", "de", 3))
    parts = translator(model, tokenizer, max_sentences=1).translate_stream([line])
    texts = [tokenizer.decode_tgt(part.tgt) for [each] in parts for part in each.parts]
    options = DecodeConfig(**{**OPTIONS, "max_sentences": 1})
    for lang, joint in (("de", " "), ("th", ""), ("zho_Hans", ""), (None, " ")):
        subject = Translator(model, tokenizer, options, FP32, tgt_lang=lang)
        assert subject.translate([line]) == [joint.join(text for text in texts if text)]


@pytest.mark.parametrize("with_alignment", [False, True])
@pytest.mark.parametrize("with_scores", [False, True])
def test_rows_hold_what_each_line_gives_on_its_own(
    model: Transformer,
    tokenizer: Tokenizer,
    lines: list[str],
    with_alignment: bool,
    with_scores: bool,
) -> None:
    one = translator(model, tokenizer, nbest=2, max_src_len=30)  # long lines have several parts
    numbered = list(enumerate(lines, 7))
    rows = translated_rows(one, numbered, with_alignment, with_scores)
    assert [(row.number, row.source) for row in rows] == numbered
    assert {row.over_long for row in rows} == {False, True}
    for row, line in zip(rows, lines, strict=True):
        [hyps] = one.translate_window([line])
        assert row.over_long == (len(hyps[0].parts) > 1)
        assert [hyp.text for hyp in row.translations] == [hyp.text for hyp in hyps]
        assert [hyp.score for hyp in row.translations] == pytest.approx([hyp.score for hyp in hyps])
        assert row.alignment == (one.align([line], hyps[:1])[0] if with_alignment else None)
        if not with_scores:
            assert row.token_scores is None
            continue
        assert row.token_scores is not None
        for hyp, scores in zip(hyps, row.token_scores, strict=True):
            for part, actual in zip(hyp.parts, scores, strict=True):
                [expected] = one.likelihood_of_ids([(part.src, part.tgt)])
                assert actual.ids == expected.ids == part.tgt
                assert actual.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
