"""`mt launch`: print a job script for the scheduler of a cluster."""

from typing import Annotated, Literal

import typer

from mt.cli.options import ConfigFile, Overrides


def launch(
    scheduler: Annotated[
        Literal["slurm"], typer.Argument(help="The scheduler of the cluster.", show_default=False)
    ],
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes per machine, usually one per GPU.")
    ] = 8,
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An sbatch option, such as --option=--partition=gpu; can be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a Slurm job script that trains on one or more machines.

    A preempted job resumes by itself. Example: `mt launch slurm FILE --nodes 4 | sbatch`.
    """
    from mt.config import load_config
    from mt.runs.launch import slurm_script

    loaded = load_config(config, list(overrides or ()))
    typer.echo(
        slurm_script(
            loaded, ["train", str(config.resolve()), *(overrides or ())], nodes, nproc, option or []
        ),
        nl=False,
    )
