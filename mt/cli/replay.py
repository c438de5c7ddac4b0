"""`mt replay`: run the batch of a crash folder again, to find why training diverged."""

from pathlib import Path
from typing import Annotated

import typer


def replay(
    folder: Annotated[
        Path, typer.Argument(help="A folder under crash/ in a run folder.", show_default=False)
    ],
    device: Annotated[
        str, typer.Option(help="auto (the device that the run used), cpu, cuda or cuda:N.")
    ] = "auto",
) -> None:
    """Run the batch that made a training run diverge again, and find the cause.

    Prints the loss, the gradient norm, and where the first value that is not finite appears. Exits
    with code 3 if the loss or the gradient is not finite this time, too.
    """
    from mt.errors import DivergedError
    from mt.runs.replay import replay as run_again

    broken = False
    for index, result in enumerate(run_again(folder, device)):
        broken |= not result.finite
        where = (
            f"; the first value that is not finite is in {result.culprit}" if result.culprit else ""
        )
        typer.echo(
            f"micro-batch {index}: {result.num_pairs} pairs, loss {result.loss:.4f}, "
            f"gradient norm {result.grad_norm:.4f}{where}"
        )
    if broken:
        raise DivergedError(
            f"{folder}: the loss or the gradient is not finite; "
            f"the pairs are in {folder / 'batch.jsonl'}"
        )
