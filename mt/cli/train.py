"""`mt train`: from a configuration to a trained model; the same command resumes."""

from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Delete the run in the run folder, and start from scratch."
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Start from this model: its tokenizer, sizes and weights (train.init_from)."
        ),
    ] = None,
    nproc: Annotated[
        str | None,
        typer.Option(
            help="Number of processes on this machine, or gpu for one per GPU.",
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="With --nproc: how often to restart after a process has died."),
    ] = 0,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Do not train; print parameters, memory, corpus statistics and time of the run.",
        ),
    ] = False,
) -> None:
    """Train a model, or resume its training.

    Prepares the data, trains, validates, and saves checkpoints. The same command resumes an
    interrupted run.
    """
    from mt.config import load_config

    begin = [f"train.init_from={init_from}"] if init_from is not None else []
    loaded = load_config(config, [*(overrides or ()), *begin])
    if plan:
        from mt.runs.plan import plan as plan_run

        typer.echo(plan_run(loaded))
        return
    if nproc is not None:
        from mt.runs.launch import launch

        flags = ["--overwrite"] if overwrite else []
        raise typer.Exit(
            launch(
                loaded,
                nproc,
                ["train", str(config), *(overrides or ()), *begin, *flags],
                max_restarts,
            )
        )
    from mt.runs.start import train as run

    run(loaded, overwrite=overwrite)
