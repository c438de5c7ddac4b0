"""`mt train`: from a configuration to a trained model; the same command goes on where it stopped."""

from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import ConfigFile, Overrides


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Delete the run that the folder holds, and start anew."),
    ] = False,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="A model to begin with (train.init_from): its tokenizer, sizes and weights are taken over."
        ),
    ] = None,
    nproc: Annotated[
        str | None,
        typer.Option(
            help="Processes on this machine that train together: a number, or gpu for one a GPU.",
            show_default=False,
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="With --nproc: how often to go on by itself after a process has died."
        ),
    ] = 0,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Train nothing: print parameters, memory, corpus and time of the run."
        ),
    ] = False,
) -> None:
    """Train a model: prepare what is missing, train, validate, save. The same command again goes on
    where it stopped.
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
