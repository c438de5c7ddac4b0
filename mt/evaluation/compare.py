"""`mt compare`: find out which of several systems is better, and for which sentences.

A system is a model folder, a checkpoint, or a text file of translations.
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
    cached_translations,
    precision_of,
    read_tests,
    split_references,
    translate_tests,
)

TIE = 1e-9  # smaller differences between sentence scores do not count


@dataclass(frozen=True)
class Change:
    """A sentence that the baseline and the system translate with different scores."""

    line: int  # counted from 1
    src: str
    ref: str
    hyps: tuple[str, str]  # (baseline, system)
    scores: tuple[float, float]  # sentence chrF of (baseline, system)

    @property
    def gain(self) -> float:
        """The system's score minus the baseline's."""
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True)
class PairReport:
    """The comparison of one system with the baseline on one test set."""

    test: str
    num_sentences: int
    num_identical: int  # sentences with identical translations
    baseline: str
    system: str
    precision: str | None  # precision of the models; None if all systems are text files
    comparisons: list[Comparison]  # one per metric and kind of significance test
    changes: list[Change]  # sorted by gain, with the largest first

    @property
    def wins(self) -> int:
        """The number of sentences on which the system scores higher than the baseline."""
        return sum(change.gain > 0 for change in self.changes)

    @property
    def losses(self) -> int:
        """The number of sentences on which the system scores lower than the baseline."""
        return len(self.changes) - self.wins

    @property
    def ties(self) -> int:
        """The number of sentences on which both score the same."""
        return self.num_sentences - len(self.changes)


def compare(
    systems: Sequence[str],
    sources: Sequence[str] = (),
    references: Sequence[str] = (),
    scoring: Scoring = Scoring(),
    options: Mapping[str, Any] | None = None,
) -> list[PairReport]:
    """Compare every other system with the first one, the baseline, on each test set.

    Translations that `mt evaluate` has saved are reused if weights, text and search options are the
    same. `options` are options of `Translator.load`. Raises `ConfigError` or `DataError` if the
    systems and texts do not fit together.
    """
    if len(systems) < 2:
        raise ConfigError(
            "give at least two systems to compare: models, checkpoints, or files of translations"
        )
    models = [find_model(Path(system)) for system in systems if not Path(system).is_file()]
    config = models[0].config() if models else None
    tests = _tests(sources, references, config.data if config else None)
    metrics = scoring.build(config)
    translations = {
        name: _translations(system, tests, options or {})
        for name, system in zip(unique_names(systems), systems, strict=True)
    }
    precision = precision_of(options or {}) if models else None
    reports = []
    for index, test in enumerate(tests):
        hyps = {name: by_test[index] for name, by_test in translations.items()}
        reports += compare_translations(test, hyps, metrics, precision)
    return reports


def compare_translations(
    test: TestSet, hyps: Mapping[str, Sequence[str]], metrics: Metrics, precision: str | None = None
) -> list[PairReport]:
    """Compare every other system with the first one. `translations` are keyed by system name."""
    if len(test.src) < 2:
        raise DataError(
            f"{test.name}: a significance test needs at least two sentences, but there is only one"
        )
    comparisons = [c for kind in KINDS for c in paired_tests(hyps, test.refs, metrics, kind)]
    comparisons.sort(key=lambda c: list(metrics).index(c.score.name))
    scores = {name: sentence_scores(lines, test.refs) for name, lines in hyps.items()}
    baseline, *others = hyps
    return [
        PairReport(
            test.name,
            len(test.src),
            sum(old == new for old, new in zip(hyps[baseline], hyps[system], strict=True)),
            baseline,
            system,
            precision,
            [c for c in comparisons if c.system == system],
            _changes(test, hyps[baseline], hyps[system], scores[baseline], scores[system]),
        )
        for system in others
    ]


def _tests(
    sources: Sequence[str], references: Sequence[str], data: DataConfig | None
) -> list[TestSet]:
    if data is None and not sources:  # all systems are text files, so no source text is needed
        if len(references) != 1:
            raise ConfigError("files of translations need exactly one --ref (several files: a,b)")
        refs = [read_text(name) for name in split_references(references[0])]
        return [TestSet(references[0], [""] * len(refs[0]), refs)]
    return read_tests(data or DataConfig(), sources, references)


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names, and number those that are repeated: `a`, `a (2)`, `a (3)`."""
    return [
        f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name
        for i, name in enumerate(names)
    ]


def _translations(
    system: str, tests: Sequence[TestSet], options: Mapping[str, Any]
) -> list[list[str]]:
    if not Path(system).is_file():
        folder = find_model(Path(system))
        cached = cached_translations(folder, tests, options)
        if None not in cached:
            return [hyps for hyps in cached if hyps is not None]
        with Translator.load(folder.path, **options) as translator:
            return translate_tests(translator, tests, cached)
    if len(tests) != 1:
        raise ConfigError(
            f"{system}: a file of translations belongs to one test set, but there are "
            f"{len(tests)}; choose one with --src and --ref"
        )
    return [read_text(system)]


def _changes(
    test: TestSet,
    old_hyps: Sequence[str],
    new_hyps: Sequence[str],
    old_scores: Sequence[float],
    new_scores: Sequence[float],
) -> list[Change]:
    columns = zip(test.src, test.refs[0], old_hyps, new_hyps, old_scores, new_scores, strict=True)
    changes = [
        Change(line, src, ref, (old_hyp, new_hyp), (old, new))
        for line, (src, ref, old_hyp, new_hyp, old, new) in enumerate(columns, 1)
        if abs(new - old) > TIE
    ]
    return sorted(changes, key=lambda change: -change.gain)


def verdict(pair: PairReport) -> str:
    """Summarize in one or two sentences which system to take.

    A metric counts only if every kind of significance test finds its difference significant.
    """
    if pair.num_identical == pair.num_sentences:
        return (
            f"No difference: {pair.system} and {pair.baseline} "
            f"translate all {pair.num_sentences:,} sentences identically."
        )
    groups = itertools.groupby(pair.comparisons, key=lambda c: c.score.name)
    better: list[str] = []
    worse: list[str] = []
    unclear: list[str] = []
    for group in (list(group) for _, group in groups):  # one per metric
        is_real = all(c.is_significant for c in group)
        outcome = unclear if not is_real else better if group[0].is_better else worse
        outcome.append(_finding(group))
    if better and worse:
        return (
            f"Undecided: {pair.system} is better by {', '.join(better)}, "
            f"but worse by {', '.join(worse)}. Look at the sentences that changed."
        )
    if not better and not worse:
        return (
            f"No difference found between {pair.system} and {pair.baseline}: "
            f"{', '.join(unclear)} could be due to chance. "
            "Take whichever is smaller or faster, or test on more text."
        )
    names = [pair.system, pair.baseline]
    winner, loser = names if better else reversed(names)
    doubt = f" ({', '.join(unclear)} could be due to chance)" if unclear else ""
    return f"{winner} is better than {loser} by {', '.join(better or worse)}{doubt}. Take {winner}."


def _finding(group: Sequence[Comparison]) -> str:
    """Format the tests of one metric like `BLEU +0.62 (p-values: 0.003, 0.004)`."""
    p_values = ", ".join(
        "-" if c.p_value is None else f"{c.p_value:.3f}" if c.p_value >= 0.001 else "<0.001"
        for c in group
    )
    return f"{TITLES[group[0].score.name]} {group[0].difference:+.2f} (p-values: {p_values})"
