"""`mt replay`: run a batch that broke training again."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    folder: Annotated[
        Path, typer.Argument(help="A folder in crash/ of a run folder.", show_default=False)
    ],
    device: Annotated[
        str, typer.Option(help="auto (the device of the run), cpu, cuda or cuda:N.")
    ] = "auto",
) -> None:
    """Run the batch that broke a training again, alone.

    Exits with 3 if its loss or gradient is not finite again.
    """
    from mt.errors import DivergedError
    from mt.runs.replay import replay as run_again

    broken = False
    for index, found in enumerate(run_again(folder, device)):
        broken |= not found.finite
        where = f"; first not finite: {found.culprit}" if found.culprit else ""
        typer.echo(
            f"micro-batch {index}: {found.num_pairs} pairs, loss {found.loss:.4f}, "
            f"gradient norm {found.grad_norm:.4f}{where}"
        )
    if broken:
        raise DivergedError(
            f"{folder}: not finite again; the pairs are in {folder / 'batch.jsonl'}"
        )
