"""`mt config`: show what a configuration resolves to, and the JSON Schema that editors check YAML files with."""

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add `mt config show` and `mt config schema`."""
    commands = typer.Typer(
        name="config", help="Show a resolved configuration or the schema.", no_args_is_help=True
    )
    commands.command()(show)
    commands.command()(schema)
    app.add_typer(commands)


def show(
    config: Annotated[Path, typer.Argument(help="The YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Such as optim.lr=3e-4.", show_default=False)
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every key, not only what differs from the defaults.")
    ] = False,
) -> None:
    """Print the configuration as YAML, after presets and overrides."""
    from mt.config import load_config, to_yaml

    typer.echo(to_yaml(load_config(config, overrides or ()), full=full), nl=False)


def schema() -> None:
    """Print the JSON Schema of the YAML files (kept in configs/schema.json)."""
    from mt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
