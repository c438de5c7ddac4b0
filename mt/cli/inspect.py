"""`mt inspect`: describe a folder, and verify its files."""

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run, checkpoint, crash or model folder.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a run, checkpoint or model folder, and verify its files.

    Exits with 1 and names the files if some of them are damaged.
    """
    from mt.errors import CheckpointError
    from mt.runs.inspect import as_json as to_json
    from mt.runs.inspect import as_text, errors
    from mt.runs.inspect import inspect as look

    report = look(path)
    typer.echo(to_json(report) if as_json else as_text(report))
    if damaged := errors(report):
        raise CheckpointError("\n".join(damaged))
