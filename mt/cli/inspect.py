"""`mt inspect`: describe a run, checkpoint, crash or model folder, and verify its files."""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run, checkpoint, crash or model folder.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a run, checkpoint, crash or model folder, and verify its files.

    If files are damaged or missing, prints their names and exits with code 1.
    """
    from mt.errors import CheckpointError
    from mt.runs import inspect as inspection

    report = inspection.inspect(path)
    typer.echo(inspection.as_json(report) if as_json else inspection.as_text(report))
    if damaged := inspection.errors(report):
        raise CheckpointError("\n".join(damaged))
