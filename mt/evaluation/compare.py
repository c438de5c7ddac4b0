"""`mt compare`: is one of these systems better, and where; each is a model, a checkpoint, or a file
of translations.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mt.artifacts import find_model
from mt.config import DataConfig
from mt.data.sources import read_text
from mt.decode.translator import Translator
from mt.errors import ConfigError, DataError
from mt.evaluation import KINDS, TITLES, Comparison, Metrics, paired_tests, sentence_scores
from mt.evaluation.evaluate import (
    Scoring,
    TestSet,
    kept_translations,
    precision_of,
    read_tests,
    split_references,
    translate_tests,
)

TIE = 1e-9  # of sentence scores


@dataclass(frozen=True)
class Change:
    """One sentence whose score differs between two systems."""

    line: int  # from 1
    src: str
    ref: str
    hyps: tuple[str, str]
    scores: tuple[float, float]  # chrF of the sentence

    @property
    def gain(self) -> float:
        """Of the second system."""
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True)
class PairReport:
    """One system beside the baseline on one test set."""

    test: str
    num_sentences: int
    num_identical: int  # lines with the same translation
    baseline: str
    system: str
    precision: str | None  # of the models' translations; None where there is no model
    comparisons: list[Comparison]  # each metric by each kind of test
    changes: list[Change]  # the greatest gain first

    @property
    def wins(self) -> int:
        """Sentences where the system scores better than the baseline."""
        return sum(change.gain > 0 for change in self.changes)

    @property
    def losses(self) -> int:
        """Sentences where it scores worse."""
        return len(self.changes) - self.wins

    @property
    def ties(self) -> int:
        """All others."""
        return self.num_sentences - len(self.changes)


def compare(
    systems: Sequence[str],
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    scoring: Scoring = Scoring(),
    options: Mapping[str, Any] | None = None,
) -> list[PairReport]:
    """Each system but the first beside the first, on each test set.

    A model's translations that `mt evaluate` has kept are used again where weights, text and search
    are the same; `options` are those of `Translator.load`. Raises `ConfigError` or `DataError` for
    systems and texts that do not go together.
    """
    if len(systems) < 2:
        raise ConfigError(
            "a comparison needs two systems or more: models, checkpoints, or files of translations"
        )
    models = [find_model(Path(system)) for system in systems if not Path(system).is_file()]
    config = models[0].config() if models else None
    tests = _tests(sources, references, config.data if config else None)
    metrics = scoring.build(config)
    names = list(distinct(systems))
    hyps = {
        name: _translations(system, tests, options or {})
        for name, system in zip(names, systems, strict=True)
    }
    tested = [
        (test, {name: found[index] for name, found in hyps.items()})
        for index, test in enumerate(tests)
    ]
    precision = precision_of(options or {}) if models else None
    return [
        pair
        for test, of_test in tested
        for pair in compare_translations(test, of_test, metrics, precision)
    ]


def compare_translations(
    test: TestSet, hyps: Mapping[str, Sequence[str]], metrics: Metrics, precision: str | None = None
) -> list[PairReport]:
    """Each system but the first beside the first, from their translations by name."""
    if len(test.src) < 2:
        raise DataError(
            f"{test.name}: one sentence says nothing about chance; a comparison needs two or more"
        )
    found = [
        comparison for kind in KINDS for comparison in paired_tests(hyps, test.refs, metrics, kind)
    ]
    scores = {name: sentence_scores(lines, test.refs) for name, lines in hyps.items()}
    baseline, *others = hyps
    reports = []
    for name in others:
        own = sorted(
            (c for c in found if c.system == name), key=lambda c: list(metrics).index(c.score.name)
        )
        reports.append(_pair(test, baseline, name, precision, hyps, scores, own))
    return reports


def _tests(
    sources: Sequence[str], references: Sequence[str], data: DataConfig | None
) -> list[TestSet]:
    if data is None and not sources:  # files alone: the source is only shown
        if len(references) != 1:
            raise ConfigError(
                "files of translations are compared by one --ref (several references: a,b)"
            )
        refs = [read_text(name) for name in split_references(references[0])]
        return [TestSet(references[0], [""] * len(refs[0]), refs)]
    return read_tests(data or DataConfig(), sources, references)


def distinct(systems: Sequence[str]) -> list[str]:
    """Names of systems; one that is named twice gets a number."""
    return [
        f"{name} ({systems[:i].count(name) + 1})" if name in systems[:i] else name
        for i, name in enumerate(systems)
    ]


def _translations(
    system: str, tests: Sequence[TestSet], options: Mapping[str, Any]
) -> list[list[str]]:
    if not Path(system).is_file():
        folder = find_model(Path(system))
        kept = kept_translations(folder, tests, options)
        if None not in kept:
            return [hyps for hyps in kept if hyps is not None]
        with Translator.load(folder.path, **options) as translator:
            return translate_tests(translator, tests, kept)
    if len(tests) != 1:
        raise ConfigError(
            f"{system}: a file of translations is of one test set, but there are {len(tests)}; give --src and --ref"
        )
    return [read_text(system)]


def _pair(
    test: TestSet,
    baseline: str,
    system: str,
    precision: str | None,
    hyps: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]],
    comparisons: list[Comparison],
) -> PairReport:
    columns = hyps[baseline], hyps[system], scores[baseline], scores[system]
    changes = [
        Change(line, src, ref, (before, after), (old, new))
        for line, (src, ref, before, after, old, new) in enumerate(
            zip(test.src, test.refs[0], *columns, strict=True), 1
        )
        if abs(new - old) > TIE
    ]
    identical = sum(before == after for before, after in zip(columns[0], columns[1], strict=True))
    changes.sort(key=lambda change: -change.gain)
    return PairReport(
        test.name, len(test.src), identical, baseline, system, precision, comparisons, changes
    )


def verdict(pair: PairReport) -> str:
    """What the tests say, in words to act on; a metric counts where every kind of test finds its
    difference significant.
    """
    if pair.num_identical == pair.num_sentences:
        return f"No difference: {pair.system} and {pair.baseline} translate all {pair.num_sentences:,} sentences alike."
    by_metric = [
        list(group) for _, group in itertools.groupby(pair.comparisons, key=lambda c: c.score.name)
    ]
    real = [group for group in by_metric if all(c.is_significant for c in group)]
    ups, downs = (
        [_finding(group) for group in real if group[0].is_better is better]
        for better in (True, False)
    )
    if ups and downs:
        contrary = f"{pair.system} is better by {', '.join(ups)}, but worse by {', '.join(downs)}"
        return f"Undecided: {contrary}. Look at the sentences that changed."
    if ups or downs:
        winner, loser = (pair.system, pair.baseline) if ups else (pair.baseline, pair.system)
        others = [_finding(group) for group in by_metric if group not in real]
        besides = f" ({', '.join(others)}: may be chance)" if others else ""
        return (
            f"{winner} is better than {loser} by {', '.join(ups or downs)}{besides}. Take {winner}."
        )
    found = ", ".join(_finding(group) for group in by_metric)
    return (
        f"No difference found between {pair.system} and {pair.baseline}: {found} may be chance. Take whichever is smaller or faster, "
        "or test on more text."
    )


def _finding(group: Sequence[Comparison]) -> str:
    """`BLEU +0.62 (p = 0.003, 0.004)`."""
    p_values = ", ".join(
        "-" if c.p_value is None else f"{c.p_value:.3f}" if c.p_value >= 0.001 else "<0.001"
        for c in group
    )
    return f"{TITLES[group[0].score.name]} {group[0].difference:+.2f} (p = {p_values})"
