"""`mt replay`: a batch that broke training, run again alone."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    folder: Annotated[
        Path, typer.Argument(help="A folder in crash/ of a run folder.", show_default=False)
    ],
    device: Annotated[
        str, typer.Option(help="auto (that of the run), cpu, cuda or cuda:N.")
    ] = "auto",
) -> None:
    """Run again, alone, the batch that broke a training; exits 3 where it breaks again."""
    from mt.errors import DivergedError
    from mt.runs.replay import replay as run_again

    broken = False
    for index, found in enumerate(run_again(folder, device)):
        broken |= not found.finite
        where = f"; first not finite: {found.culprit}" if found.culprit else ""
        typer.echo(
            f"micro-batch {index}: {found.num_pairs} pairs, loss {found.loss:.4f}, gradient norm {found.grad_norm:.4f}{where}"
        )
    if broken:
        raise DivergedError(
            f"{folder}: not finite again; the pairs are in {folder / 'batch.jsonl'}"
        )
