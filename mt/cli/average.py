"""`mt average`: average the weights of several checkpoints."""

from pathlib import Path
from typing import Annotated

import typer


def average(
    run: Annotated[Path, typer.Argument(help="The run folder.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The model folder to create.", show_default=False)
    ],
    last: Annotated[int | None, typer.Option(min=1, help="Average the last N checkpoints.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="Average the best N checkpoints.")] = None,
) -> None:
    """Average the weights of several checkpoints of a run into a new model.

    Give either --last or --best. The best checkpoints are those with the best validation scores.
    """
    from mt.errors import ConfigError

    if (last is None) == (best is None):
        raise ConfigError("give either --last N or --best N")
    from mt.artifacts import average_checkpoints, run_checkpoints
    from mt.cli.output import print_result

    folders = run_checkpoints(run, last, best)
    average_checkpoints(folders, output)
    print_result(f"{output}: average of {', '.join(folder.name for folder in folders)}")
