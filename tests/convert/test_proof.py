"""When two engines count as alike: identical lines, ties by both engines' own scores, and
everything else.
"""

from collections.abc import Sequence

import pytest
import torch

from mt.config import DecodeConfig, ModelConfig
from mt.convert.proof import Difference, OurEngine, Parity, compare
from mt.data.tokenizer import BOS_ID, EOS_ID, Tokenizer
from mt.decode.translator import Translator
from mt.errors import DataError
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from tests.conftest import sample_lines


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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


class Changed(OurEngine):
    """Our engine, but some translations end otherwise, and scores are off by something."""

    def __init__(self, translator: Translator, lines: set[int], off: float) -> None:
        super().__init__(translator)
        self.lines, self.off = lines, off

    def translate(self, sources: Sequence[list[int]]) -> list[tuple[list[int], float]]:
        found = super().translate(sources)
        return [
            ([*tokens, 7] if i in self.lines else tokens, score + self.off)
            for i, (tokens, score) in enumerate(found)
        ]


def test_an_engine_that_gives_the_same_is_alike(translator: Translator) -> None:
    parity = compare(
        translator, Changed(translator, set(), 2e-4), ["", *sample_lines("test", "de", 9)]
    )
    assert parity.num_lines == 9  # the empty line is none
    assert parity.holds
    assert parity.score_gap == pytest.approx(2e-4)
    assert "9 of 9 translations identical" in str(parity)


def test_a_line_that_scores_worse_for_either_engine_is_no_tie(translator: Translator) -> None:
    parity = compare(
        translator, Changed(translator, {4}, 0.0), ["", *sample_lines("test", "de", 9)]
    )
    [difference] = parity.differences
    assert difference.line == 6  # of the text, its empty line counted
    assert difference.gap > 1e-3
    assert not parity.holds


@pytest.mark.parametrize(
    ("ties", "worse", "holds"), [(0, 0, True), (5, 0, True), (6, 0, False), (0, 1, False)]
)
def test_995_of_1000_must_be_identical_and_all_others_ties(
    ties: int, worse: int, holds: bool
) -> None:
    differences = [Difference(1, "a", "b", 9e-4)] * ties + [Difference(1, "a", "b", 1.1e-3)] * worse
    assert Parity(1000, differences, 0.0).holds == holds


def test_scores_that_differ_on_the_same_translations_are_no_proof() -> None:
    assert not Parity(1000, [], 2e-3).holds


def test_a_text_without_lines_is_no_proof(translator: Translator) -> None:
    with pytest.raises(DataError, match="no line that both can translate"):
        compare(translator, OurEngine(translator), ["", " "])


@torch.no_grad()
def test_our_score_is_the_full_forwards_mean_log_probability(
    translator: Translator, model: Transformer
) -> None:
    source, target = translator.tokenizer.encode_src(sample_lines("test", "de", 1))[0], [9, 5, 100]
    tgt_in = torch.tensor([[BOS_ID, *target]])
    log_probs = model.project(model(torch.tensor([[*source, EOS_ID]]), None, tgt_in))[
        0
    ].log_softmax(-1)
    expected = log_probs.gather(1, torch.tensor([*target, EOS_ID])[:, None]).mean()
    assert OurEngine(translator).score(source, target) == pytest.approx(float(expected), abs=1e-5)
