"""`mt config`: print a configuration as it will be used, or the JSON Schema for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import Overrides

config = typer.Typer(
    help="Print a configuration as it will be used, or the JSON Schema for editors.",
    no_args_is_help=True,
)


@config.command()
def show(
    config: Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)],
    overrides: Overrides = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Print all options, including those with default values."),
    ] = False,
) -> None:
    """Print a configuration as YAML, with presets and overrides applied."""
    from mt.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(config, overrides or ()), full=full), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the YAML files, as stored in configs/schema.json."""
    from mt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
