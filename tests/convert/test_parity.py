"""Check that engines agree if translations are identical or, by both engines' scores, tied."""

from collections.abc import Sequence

import pytest
import torch

from mt.config import DecodeConfig, ModelConfig
from mt.convert.parity import Difference, MTEngine, Parity, compare
from mt.data.tokenizer import BOS_ID, EOS_ID, Tokenizer
from mt.decode.translator import Translator
from mt.errors import DataError
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from tests.conftest import sample_lines

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    config = ModelConfig(
        d_model=16, d_ff=32, num_heads=2, encoder_layers=1, decoder_layers=1, norm="pre"
    )
    return build_model(config, tokenizer.src_vocab_size, tokenizer.tgt_vocab_size, seed=3).eval()


@pytest.fixture
def translator(model: Transformer, tokenizer: Tokenizer) -> Translator:
    return Translator(
        model,
        tokenizer,
        DecodeConfig(beam_size=2, max_len_a=0.0, max_len_b=6),
        Compute(torch.device("cpu"), torch.float32),
    )


class Changed(MTEngine):
    """Our engine, but some translations get an extra token, and all scores get an offset."""

    def __init__(self, translator: Translator, lines: set[int], offset: float) -> None:
        super().__init__(translator)
        self.lines, self.offset = lines, offset

    def translate(self, sources: Sequence[list[int]]) -> list[tuple[list[int], float]]:
        results = super().translate(sources)
        return [
            ([*tokens, 7] if i in self.lines else tokens, score + self.offset)
            for i, (tokens, score) in enumerate(results)
        ]


def test_an_engine_with_the_same_translations_passes(translator: Translator) -> None:
    parity = compare(
        translator, Changed(translator, set(), 2e-4), ["", *sample_lines("test", "de", 9)]
    )
    assert parity.num_lines == 9  # the empty line is skipped
    assert parity.holds
    assert parity.score_gap == pytest.approx(2e-4)
    assert "9 of 9 translations identical" in str(parity)


def test_a_translation_that_scores_worse_is_not_a_tie(translator: Translator) -> None:
    parity = compare(
        translator, Changed(translator, {4}, 0.0), ["", *sample_lines("test", "de", 9)]
    )
    [difference] = parity.differences
    assert difference.line == 6  # counted in the whole text, with its empty line
    assert difference.gap > 1e-3
    assert not parity.holds


@pytest.mark.parametrize(
    ("ties", "worse", "holds"), [(0, 0, True), (5, 0, True), (6, 0, False), (0, 1, False)]
)
def test_995_of_1000_lines_must_be_identical_and_the_others_ties(
    ties: int, worse: int, holds: bool
) -> None:
    differences = [Difference(1, "a", "b", 9e-4)] * ties + [Difference(1, "a", "b", 1.1e-3)] * worse
    assert Parity(1000, differences, 0.0).holds == holds


def test_different_scores_for_identical_translations_fail_the_proof() -> None:
    assert not Parity(1000, [], 2e-3).holds


def test_a_text_without_lines_cannot_prove_anything(translator: Translator) -> None:
    with pytest.raises(DataError, match="no line that both engines can translate"):
        compare(translator, MTEngine(translator), ["", " "])


@torch.no_grad()
def test_our_score_is_the_mean_log_probability_of_a_full_forward(
    translator: Translator, model: Transformer
) -> None:
    source, target = translator.tokenizer.encode_src(sample_lines("test", "de", 1))[0], [9, 5, 100]
    tgt_in = torch.tensor([[BOS_ID, *target]])
    log_probs = model.project(model(torch.tensor([[*source, EOS_ID]]), None, tgt_in))[
        0
    ].log_softmax(-1)
    expected = log_probs.gather(1, torch.tensor([*target, EOS_ID])[:, None]).mean()
    assert MTEngine(translator).score(source, target) == pytest.approx(float(expected), abs=1e-5)
