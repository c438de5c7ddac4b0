"""Test the metrics, which must give the same scores as the `sacrebleu` command."""

import sys
from pathlib import Path

import pytest

from mt.config.ranking import is_better, ranking_key
from mt.errors import ConfigError, DataError
from mt.evaluation import (
    MAX_RESAMPLED,
    Interval,
    Score,
    build_metrics,
    corpus_scores,
    sentence_scores,
)
from tests.evaluation.texts import CORPORA, Corpus, noisy, sacrebleu, sample_text


@pytest.mark.parametrize("corpus", CORPORA, ids=lambda corpus: corpus.name)
def test_values_intervals_and_signatures_are_those_of_the_sacrebleu_command(
    corpus: Corpus, tmp_path: Path
) -> None:
    refs = corpus.read()
    hyps = noisy(refs)
    options = [
        "-m",
        "bleu",
        "chrf",
        "ter",
        "--confidence",
        "--confidence-n",
        "200",
        *corpus.options,
    ]
    command_scores = sacrebleu(tmp_path, [refs], [hyps], *options)
    scores = corpus_scores(hyps, [refs], build_metrics(tgt_lang=corpus.lang), resamples=200)
    assert list(scores) == ["bleu", "chrf", "ter"]
    assert 20 < scores["bleu"].value < 95
    for score, command_score in zip(scores.values(), command_scores, strict=True):
        assert score.value == pytest.approx(command_score["score"], abs=1e-8)
        assert score.interval is not None
        assert score.interval.mean == pytest.approx(command_score["confidence_mean"], abs=1e-8)
        assert score.interval.half_width == pytest.approx(command_score["confidence_var"], abs=1e-8)
        assert score.interval.half_width > 0.1
        assert score.signature == command_score["signature"]


def test_several_references_and_chrf_with_words_are_those_of_the_command(tmp_path: Path) -> None:
    refs = [sample_text(), noisy(sample_text(), seed=5)]
    hyps = noisy(refs[0])
    command_scores = sacrebleu(
        tmp_path, refs, [hyps], "-m", "bleu", "chrf", "--chrf-word-order", "2"
    )
    scores = corpus_scores(hyps, refs, build_metrics(["bleu", "chrf++"]))
    assert [score.value for score in scores.values()] == pytest.approx(
        [expected["score"] for expected in command_scores], abs=1e-8
    )
    assert [score.signature for score in scores.values()] == [
        expected["signature"] for expected in command_scores
    ]
    assert "nrefs:2" in scores["bleu"].signature
    assert (
        scores["bleu"].value > corpus_scores(hyps, refs[:1], build_metrics(["bleu"]))["bleu"].value
    )


def test_the_language_chooses_the_tokenizer_of_bleu_and_a_name_overrides_it() -> None:
    hyps, refs = ["机器 翻译 很 好 用"], [["机器翻译很好用"]]
    signatures = [
        corpus_scores(hyps, refs, build_metrics(["bleu"], lang, tokenizer))["bleu"].signature
        for lang, tokenizer in (
            ("zh", None),
            ("zh_CN", None),
            ("zh", "char"),
            (None, None),
            ("de", None),
        )
    ]
    assert [signature.split("tok:")[1].split("|")[0] for signature in signatures] == [
        "zh",
        "zh",
        "char",
        "13a",
        "13a",
    ]


@pytest.mark.parametrize(
    ("names", "lang", "tokenizer", "message"),
    [
        (["blue"], None, None, "unknown metric 'blue'; choose from bleu, chrf"),
        (["bleu"], None, "14a", "unknown BLEU tokenizer '14a'"),
        (["legacy-bleu"], None, None, "needs the target language"),
        (["legacy-bleu"], "ja", None, "is not possible for ja"),
    ],
)
def test_a_metric_that_does_not_exist_or_apply_is_an_error(
    names: list[str], lang: str | None, tokenizer: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_metrics(names, lang, tokenizer)


@pytest.mark.parametrize(
    ("name", "lang", "module", "extra"),
    [
        ("bleu", "ja", "MeCab", "ja"),
        ("bleu", "ko", "mecab_ko", "ko"),
        ("legacy-bleu", "de", "sacremoses", "legacy"),
    ],
)
def test_a_missing_package_names_its_extra(
    name: str, lang: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for tokenizer in (
        "sacrebleu.tokenizers.tokenizer_ja_mecab",
        "sacrebleu.tokenizers.tokenizer_ko_mecab",
    ):
        # Set the module before deleting it. After the test, monkeypatch then removes the module
        # that is imported below.
        monkeypatch.setitem(sys.modules, tokenizer, None)
        monkeypatch.delitem(sys.modules, tokenizer)
    with pytest.raises(ConfigError, match=rf"mt-forge\[{extra}\]"):
        build_metrics([name], lang)


def test_one_sentence_and_very_many_have_a_score_and_no_interval() -> None:
    metrics = build_metrics(["chrf"])
    assert corpus_scores(["a b"], [["a b"]], metrics, resamples=100)["chrf"].interval is None
    many = ["a b"] * (MAX_RESAMPLED + 1)
    assert corpus_scores(many, [many], metrics, resamples=100)["chrf"].interval is None
    assert corpus_scores(many[:3], [many[:3]], metrics, resamples=100)["chrf"].interval is not None


def test_a_sentence_score_is_the_score_of_that_sentence_as_a_corpus() -> None:
    refs = sample_text()[:20]
    hyps = noisy(refs)
    alone = [
        corpus_scores([hyp], [[ref]], build_metrics(["chrf"]))["chrf"].value
        for hyp, ref in zip(hyps, refs, strict=True)
    ]
    assert sentence_scores(hyps, [refs]) == pytest.approx(alone)


def test_a_perfect_translation_has_perfect_scores() -> None:
    refs = sample_text()
    assert {name: round(score.value, 6) for name, score in corpus_scores(refs, [refs]).items()} == {
        "bleu": 100,
        "chrf": 100,
        "ter": 0,
    }


def test_only_the_metrics_asked_for_are_computed_in_their_order() -> None:
    assert list(corpus_scores(["a b c d"], [["a b c d"]], build_metrics(["chrf", "bleu"]))) == [
        "chrf",
        "bleu",
    ]


@pytest.mark.parametrize(
    ("hyps", "refs", "message"),
    [
        (["a"], ["a", "b"], "1 translations but 2 references"),
        (["a"] * 1200, ["a"], "1,200 translations but 1 references"),
        ([], [], "no lines to score"),
        (["a", "b"], ["", " "], "every line of the reference is empty"),
    ],
)
def test_lines_that_do_not_match_are_an_error_that_says_so(
    hyps: list[str], refs: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        corpus_scores(hyps, [refs])


@pytest.mark.parametrize(
    ("metric", "value", "best", "expected"),
    [
        ("bleu", 30.1, 30.0, True),
        ("bleu", 30.0, 30.0, False),
        ("bleu", 29.9, 30.0, False),
        ("chrf", 50.1, 50.0, True),
        ("chrf", 49.9, 50.0, False),
        ("loss", 1.9, 2.0, True),
        ("loss", 2.0, 2.0, False),
        ("loss", 2.1, 2.0, False),
        ("ter", 39.9, 40.0, True),
        ("ter", 40.1, 40.0, False),
        ("loss", float("nan"), 2.0, False),
        ("bleu", float("nan"), 2.0, False),
    ],
)
def test_better_is_higher_for_bleu_and_chrf_lower_for_loss_and_ter(
    metric: str, value: float, best: float, expected: bool
) -> None:
    assert is_better(metric, value, best) is expected


def test_a_score_prints_its_title_and_two_decimals() -> None:
    printed = [str(Score(name, 12.345678, "")) for name in ("bleu", "chrf", "ter", "loss")]
    assert printed == ["BLEU 12.35", "chrF 12.35", "TER 12.35", "loss 12.35"]
    assert str(Score("chrf++", 12.345678, "", Interval(12.3, 0.5))) == "chrF++ 12.35 ± 0.50"
    assert Score("bleu", 1.0, "sig").as_dict() == {"name": "bleu", "value": 1.0, "signature": "sig"}
    assert Score("bleu", 1.0, "sig", Interval(1.1, 0.2)).as_dict()["interval"] == {
        "mean": 1.1,
        "half_width": 0.2,
    }


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("bleu", {"bleu": 2.0, "chrf": 1.0, "loss": 9.0}, {"bleu": 1.0, "chrf": 5.0, "loss": 1.0}),
        ("bleu", {"bleu": 0.0, "chrf": 5.0, "loss": 9.0}, {"bleu": 0.0, "chrf": 1.0, "loss": 1.0}),
        ("bleu", {"bleu": 0.0, "chrf": 5.0, "loss": 1.0}, {"bleu": 0.0, "chrf": 5.0, "loss": 9.0}),
        ("loss", {"bleu": 0.0, "chrf": 0.0, "loss": 1.0}, {"bleu": 9.0, "chrf": 9.0, "loss": 2.0}),
        ("chrf", {"bleu": 0.0, "chrf": 3.0, "loss": 2.0}, {"bleu": 9.0, "chrf": 2.0, "loss": 1.0}),
    ],
)
def test_ties_of_a_metric_are_broken_by_chrf_then_by_the_loss(
    metric: str, better: dict[str, float], worse: dict[str, float]
) -> None:
    assert ranking_key(metric, better) > ranking_key(metric, worse)


@pytest.mark.parametrize(
    ("lang", "tokenizer"),
    [
        ("th", "char"),
        ("tha_Thai", "char"),
        ("lao_Laoo", "char"),
        ("khm", "char"),
        ("my-MM", "char"),
        ("bod_Tibt", "char"),
        ("zh", "zh"),
        ("zho_Hans", "zh"),
        ("zh-Hant-TW", "zh"),
        ("cmn", "zh"),
        ("yue_Hant", "zh"),
        ("de", "13a"),
        ("deu_Latn", "13a"),
        ("de_DE.UTF-8", "13a"),
        ("xx", "13a"),
        (None, "13a"),
    ],
)
def test_bleu_takes_a_tokenizer_that_fits_the_language(lang: str | None, tokenizer: str) -> None:
    found = corpus_scores(
        ["\u0e19\u0e49\u0e33 a"], [["\u0e19\u0e49\u0e33 a"]], build_metrics(["bleu"], lang)
    )["bleu"]
    assert f"tok:{tokenizer}|" in found.signature
