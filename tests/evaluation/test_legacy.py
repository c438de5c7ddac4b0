"""Test legacy BLEU: the Moses tokens, and the score that sacreBLEU computes from these tokens."""

import pytest
from sacrebleu.metrics.bleu import BLEU

from mt.evaluation import build_metrics, corpus_scores
from tests.evaluation.texts import multi30k, noisy

pytest.importorskip("sacremoses", reason="sacremoses is missing; pip install 'mt-forge[legacy]'")


def test_the_german_test_set_of_multi30k_has_the_tokens_that_papers_report() -> None:
    from mt.evaluation.legacy import MosesTokens

    tokens = MosesTokens("de")
    assert sum(len(tokens(line).split()) for line in multi30k("de")) == 12_103


def test_legacy_bleu_is_bleu_over_those_tokens_and_says_so() -> None:
    from mt.evaluation.legacy import MosesTokens

    refs = multi30k("de")[:100]
    hyps = noisy(refs)
    tokens = MosesTokens("de")
    plain = BLEU(tokenize="none", smooth_method="none", force=True)
    expected = plain.corpus_score(list(map(tokens, hyps)), [list(map(tokens, refs))]).score
    found = corpus_scores(hyps, [refs], build_metrics(["legacy-bleu", "bleu"], "de"))
    assert found["legacy-bleu"].value == pytest.approx(expected, abs=1e-9)
    assert abs(found["legacy-bleu"].value - found["bleu"].value) > 0.05
    assert "case:lc|eff:no|tok:moses-de-normalized|smooth:none" in found["legacy-bleu"].signature
