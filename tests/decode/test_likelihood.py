"""Compare likelihoods with a forward pass, with search scores, and with `mt score`."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mt import Translator
from mt.config import DecodeConfig
from mt.data.batch import collate
from mt.model.transformer import Transformer
from mt.report.contents import source_gain
from mt.runtime.device import Compute
from tests.conftest import run_mt
from tests.model.small import VOCAB, small

COMPUTE = Compute(torch.device("cpu"), torch.float32)


def scorer(model: Transformer) -> Translator:
    return Translator(model, None, DecodeConfig(), COMPUTE)  # type: ignore[arg-type]


def test_scores_are_those_of_torchs_cross_entropy_pair_by_pair() -> None:
    model = small().eval()
    rng = torch.Generator().manual_seed(1)
    lens = torch.randint(0, 9, (40, 2), generator=rng).tolist()
    pairs = [
        tuple(torch.randint(4, VOCAB, (n,), generator=rng).tolist() for n in pair) for pair in lens
    ]
    scores = scorer(model).likelihood_of_ids(pairs)  # type: ignore[arg-type]
    for (src, tgt), found in zip(pairs, scores, strict=True):
        batch = collate([(src, tgt)])
        with torch.no_grad():
            logits = model.project(model(batch.src, None, batch.tgt_in))[0]
        expected = -F.cross_entropy(logits, batch.tgt_out[0], reduction="none")
        assert found.ids == tgt
        assert found.log_probs == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.log_prob == pytest.approx(float(expected.sum()), abs=1e-5)


def test_no_pairs_have_no_scores() -> None:
    assert scorer(small()).likelihood_of_ids([]) == []


def test_a_translation_scores_what_the_search_gave_it(trained_run: Path, sample: Path) -> None:
    lines = (sample / "test.de").read_text(encoding="utf-8").split("\n")[:-1]
    translator = Translator.load(trained_run, threads=1, beam_size=3)
    sources = translator.tokenizer.encode_src(lines)
    hyps = [found[0] for found in translator.search(sources)]
    counted = [
        round(hyp.log_prob / hyp.score) for hyp in hyps
    ]  # numbers of tokens, with the end-of-sentence token if the search reached it
    found = Translator.load(trained_run).likelihood_of_ids(
        [(src, hyp.tokens) for src, hyp in zip(sources, hyps, strict=True)]
    )
    log_probs = [
        sum(scores.log_probs[:count]) for scores, count in zip(found, counted, strict=True)
    ]
    assert log_probs == pytest.approx([hyp.log_prob for hyp in hyps], abs=1e-4)


def test_what_the_source_is_worth_to_a_target(trained_run: Path) -> None:
    subject = Translator.load(trained_run)
    src, tgt = (
        ["Der Hund schläft.", "Die Frau liest.", "Das Haus ist alt.", ""],
        ["The dog sleeps.", "x y", "The house is old.", ""],
    )
    own, other = (
        list(subject.likelihood(zip(sources, tgt, strict=True)))
        for sources in (src, [src[2], src[3], src[0], src[1]])
    )
    expected = [
        (a.log_prob - b.log_prob) / len(a.log_probs) for a, b in zip(own, other, strict=True)
    ]
    assert source_gain(subject, src, tgt) == pytest.approx(expected)
    assert source_gain(subject, ["a", "a"], ["b", "c"]) == [0, 0]


def test_the_command_prints_log_probability_tokens_and_perplexity_of_each_line(
    trained_run: Path, sample: Path
) -> None:
    result = run_mt("score", trained_run, "--src", sample / "test.de", "--tgt", sample / "test.en")
    assert result.returncode == 0, result.stderr
    rows = [tuple(map(float, line.split("\t"))) for line in result.stdout.splitlines()]
    assert len(rows) == 20
    for log_prob, count, perplexity in rows:
        assert perplexity == pytest.approx(math.exp(-log_prob / count), rel=1e-4)
    total, tokens = sum(row[0] for row in rows), sum(row[1] for row in rows)
    assert result.stderr.startswith(
        f"20 lines, {tokens:,.0f} tokens: log-probability {total / tokens:.3f}"
    ), result.stderr
    assert result.stderr.endswith(", in fp32\n")
    unequal = run_mt(
        "score", trained_run, "--src", sample / "test.de", "--tgt", sample / "train.en"
    )
    assert unequal.returncode == 2
    assert "parallel files must match" in unequal.stderr
