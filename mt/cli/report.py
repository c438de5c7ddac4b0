"""`mt report`: write a report on runs and models as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import (
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


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders or model folders; the first is the baseline.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The HTML file (default: report.html in the first folder)."
        ),
    ] = None,
    src: Sources = None,
    ref: References = None,
    metric: Metric = None,
    tokenizer: BleuTokenizer = None,
    lang: TargetLanguage = None,
    maps: Annotated[
        int, typer.Option(min=0, help="Number of sentences to show attention maps for.")
    ] = 8,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    workers: WorkerCount = None,
) -> None:
    """Write an HTML report about one or more runs or models.

    The report shows training curves, scores with significance tests, all translations, attention
    maps, and how the configurations differ. It is a single file that works offline. Translations
    that `mt evaluate` has saved are reused.
    """
    from mt.runtime.template import start_template_early

    start_template_early(workers, threads, device)
    from mt.artifacts import RunFolder
    from mt.cli.output import check_output, print_result, write_text
    from mt.evaluation.evaluate import Scoring
    from mt.report.contents import report_data
    from mt.report.page import render

    options = {"precision": precision, "device": device, "threads": threads, "workers": workers}
    scoring = Scoring(tuple(metric or Scoring.metrics), tokenizer, lang)
    path = output or RunFolder(runs[0]).report_path
    check_output(path)
    write_text(path, render(report_data(runs, src or [], ref or [], scoring, options, maps)))
    print_result(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
