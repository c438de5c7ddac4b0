"""`mt report`: runs as one page to open, send and print."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add `mt report`."""
    app.command()(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders or model folders; the first is the baseline.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The page (default: report.html in the first folder)."),
    ] = None,
    src: Annotated[
        list[str] | None,
        typer.Option(help="Source text; may be repeated (default: test sets of the first run)."),
    ] = None,
    ref: Annotated[
        list[str] | None, typer.Option(help="Reference of each --src; several of one: a,b.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("-m", "--metric", help="As in mt evaluate (default: bleu chrf ter)."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="sacreBLEU's tokenizer of BLEU (default: that of the language)."),
    ] = None,
    lang: Annotated[
        str | None, typer.Option(help="Language of the target (default: data.tgt_lang).")
    ] = None,
    maps: Annotated[int, typer.Option(min=0, help="Sentences whose attention is shown.")] = 8,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8"],
        typer.Option(
            help="auto: fp32, so that every machine gives the same. Faster: bf16; fp16 on GPUs; int8 on CPUs."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads in all (default: one a core).")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes that share the threads (default on a CPU: one a thread)."
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML file: curves, scores, significance, every sentence, attention, and how the runs differ.

    It opens from disk and asks the network for nothing. Translations that mt evaluate has kept are used again.
    """
    from mt.runtime.worker_template import start_early

    start_early(workers, threads, device)
    from mt.artifacts import RunFolder
    from mt.cli.output import check_output, tell, write_text
    from mt.evaluation.evaluate import Scoring
    from mt.log import setup_logging
    from mt.report.contents import report_data
    from mt.report.page import render

    setup_logging()
    options = {"precision": precision, "device": device, "threads": threads, "workers": workers}
    scoring = Scoring(tuple(metric or Scoring.metrics), tokenizer, lang)
    path = output or RunFolder(runs[0]).report_path
    check_output(path)
    write_text(path, render(report_data(runs, src or [], ref or [], scoring, options, maps)))
    tell(f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
