"""`mt train`: train the model that a configuration describes, or resume an interrupted run."""

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
            "--overwrite", help="Delete the existing run in the run folder, and train from scratch."
        ),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Start with the weights, sizes and tokenizer of this model (train.init_from)."
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
        typer.Option(min=0, help="With --nproc: how many times to restart after a process fails."),
    ] = 0,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Print the number of parameters, memory, data and time needed; do not train.",
        ),
    ] = False,
) -> None:
    """Train a model, or resume an interrupted run.

    Prepares the data, trains, validates and saves checkpoints. To resume, run the same command
    again.
    """
    from mt.config import load_config

    initial = [f"train.init_from={init_from}"] if init_from is not None else []
    loaded = load_config(config, [*(overrides or ()), *initial])
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
                ["train", str(config), *(overrides or ()), *initial, *flags],
                max_restarts,
            )
        )
    from mt.runs.start import train as run

    run(loaded, overwrite=overwrite)
