"""`mt reproduce`: check that a score card can be reproduced."""

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    card: Annotated[
        Path, typer.Argument(help="A scorecard.json that mt evaluate wrote.", show_default=False)
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the new run (default: the one on the card, with -reproduced)."
        ),
    ] = None,
) -> None:
    """Train and evaluate again what a score card describes.

    Exits with 1 if a score differs in the second decimal.
    """
    from mt.errors import MTError
    from mt.runs.reproduce import reproduce as run

    agreements, circumstances = run(card, run_dir)
    typer.echo(
        "\n".join([*map(str, agreements), *(f"not as it was: {line}" for line in circumstances)])
    )
    if not all(agreement.holds for agreement in agreements):
        raise MTError(f"{card}: not reproduced")
