"""`mt compare`: test whether systems are significantly better than a baseline."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mt.cli.options import (
    BeamSize,
    BleuTokenizer,
    Device,
    Metric,
    Precision,
    References,
    Sources,
    TargetLanguage,
    Threads,
    WorkerCount,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mt.evaluation.compare import Change, PairReport


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            help="Models, checkpoints or files with translations; the first is the baseline."
        ),
    ],
    src: Sources = None,
    ref: References = None,
    metric: Metric = None,
    tokenizer: BleuTokenizer = None,
    lang: TargetLanguage = None,
    examples: Annotated[
        int,
        typer.Option(
            min=0,
            help="How many of the most improved and most degraded sentences to print.",
        ),
    ] = 3,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON, with every sentence whose translation changed."),
    ] = False,
    beam_size: BeamSize = None,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    workers: WorkerCount = None,
) -> None:
    """Test whether one or more systems are better than a baseline.

    Prints scores, paired significance tests, the sentences that changed most, and a verdict. A
    difference is significant if p < 0.05 in both bootstrap resampling and approximate
    randomization.
    """
    from mt.cli.output import check_output
    from mt.runtime.template import start_template_early

    check_output(None)
    # Folders are models, which need worker processes. Files already contain translations.
    if any(Path(system).is_dir() for system in systems):
        start_template_early(workers, threads, device)
    from mt.evaluation.compare import compare as run
    from mt.evaluation.evaluate import Scoring

    options = {
        "beam_size": beam_size,
        "precision": precision,
        "device": device,
        "threads": threads,
        "workers": workers,
    }
    pairs = run(
        systems,
        src or [],
        ref or [],
        Scoring(tuple(metric or Scoring.metrics), tokenizer, lang),
        options,
    )
    if as_json:
        typer.echo(json.dumps([_as_dict(pair) for pair in pairs], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(
        *(part for pair in pairs for part in _render(pair, examples)), sep="\n"
    )


def _as_dict(pair: "PairReport") -> dict[str, object]:
    from dataclasses import asdict

    from mt.evaluation.compare import verdict

    comparisons = [
        {
            "metric": c.score.name,
            "test": c.kind,
            "difference": c.difference,
            "p_value": c.p_value,
            "baseline": c.baseline_score.as_dict(),
            "system": c.score.as_dict(),
        }
        for c in pair.comparisons
    ]
    counts = {"wins": pair.wins, "losses": pair.losses, "ties": pair.ties}
    return {**asdict(pair), **counts, "comparisons": comparisons, "verdict": verdict(pair)}


def _render(pair: "PairReport", examples: int) -> "Sequence[RenderableType]":
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mt.evaluation import KINDS, TITLES
    from mt.evaluation.compare import verdict

    models = f", models in {pair.precision}" if pair.precision else ""
    heading = (
        f"{pair.test}: {pair.num_sentences:,} sentences{models}\n"
        f"  A: {pair.baseline}\n  B: {pair.system}"
    )
    table = Table(box=box.SIMPLE)
    for column in (
        "",
        "A",
        "B",
        "B - A",
        *(f"p, {name.removeprefix('paired ')}" for name in KINDS.values()),
    ):
        table.add_column(column, justify="right" if column else "left")
    for name in dict.fromkeys(c.score.name for c in pair.comparisons):
        group = [c for c in pair.comparisons if c.score.name == name]
        values = [
            str(score).removeprefix(f"{TITLES[name]} ")
            for score in (group[0].baseline_score, group[0].score)
        ]
        p_values = [
            "-" if c.p_value is None else f"{c.p_value:.4f}{' *' if c.is_significant else ''}"
            for c in group
        ]
        table.add_row(TITLES[name], *values, f"{group[0].difference:+.2f}", *p_values)
    wins, losses, ties = (f"{count:,}" for count in (pair.wins, pair.losses, pair.ties))
    counts = f"Sentence by sentence (chrF): {wins} better, {losses} worse, {ties} equal"
    shown = [
        *pair.changes[:examples],
        *[change for change in pair.changes[::-1][:examples] if change.gain < 0],
    ]
    return [
        escape(heading),
        table,
        counts,
        *(escape(_example(change)) for change in shown),
        f"\n[bold]{escape(verdict(pair))}[/bold]\n",
    ]


def _example(change: "Change") -> str:
    names = [f"{name} ({score:.1f})" for name, score in zip("AB", change.scores, strict=True)]
    rows = [
        ("source", change.src),
        ("reference", change.ref),
        *zip(names, change.hyps, strict=True),
    ]
    return "\n".join(
        [
            f"\nline {change.line}, {change.gain:+.1f}",
            *(f"  {name:9}  {text}" for name, text in rows if text),
        ]
    )
