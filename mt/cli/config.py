"""`mt config`: print a complete configuration, or the JSON Schema for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mt.cli.options import Overrides

config = typer.Typer(
    help="Print a complete configuration, or the JSON Schema.", no_args_is_help=True
)


@config.command()
def show(
    config: Annotated[Path, typer.Argument(help="The YAML file.", show_default=False)],
    overrides: Overrides = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Print every option, not only those that differ from the defaults."
        ),
    ] = False,
) -> None:
    """Print the configuration as YAML, after presets and overrides."""
    from mt.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(config, overrides or ()), full=full), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the YAML files (kept in configs/schema.json)."""
    from mt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
