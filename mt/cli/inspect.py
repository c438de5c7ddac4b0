"""`mt inspect`: what a folder is, and whether every file of it is as it was written."""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run, checkpoint, crash or model folder.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a folder holds and check every file against its manifest; exits 1 naming those that
    are damaged.
    """
    from mt.errors import CheckpointError
    from mt.runs.inspect import as_json as to_json
    from mt.runs.inspect import as_text, errors
    from mt.runs.inspect import inspect as look

    report = look(path)
    typer.echo(to_json(report) if as_json else as_text(report))
    if damaged := errors(report):
        raise CheckpointError("\n".join(damaged))
