"""`mt reproduce`: check that the scores in a scorecard can be reproduced."""

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    card: Annotated[
        Path, typer.Argument(help="A scorecard.json that mt evaluate wrote.", show_default=False)
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="The new run folder (default: the original name plus -reproduced)."),
    ] = None,
) -> None:
    """Repeat the training and evaluation of a scorecard, and compare the scores.

    Exits with code 1 if a score, rounded to two decimals, is not the same.
    """
    from mt.errors import MTError
    from mt.runs.reproduce import reproduce as run

    agreements, changes = run(card, run_dir)
    typer.echo("\n".join([*map(str, agreements), *(f"changed: {line}" for line in changes)]))
    if not all(agreement.holds for agreement in agreements):
        raise MTError(f"{card}: the scores were not reproduced")
