"""`mt import`: a model of another engine as a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def importing(
    format: Annotated[
        Literal["marian"],
        typer.Argument(help="The format: marian is Hugging Face's, such as OPUS-MT models."),
    ],
    folder: Annotated[Path, typer.Argument(help="The downloaded folder.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The model folder to create.", show_default=False)
    ],
    prove: Annotated[
        str | None, typer.Option(help="Source text that mt and transformers translate for a proof.")
    ] = None,
    lines: Annotated[
        int, typer.Option(min=1, help="How many lines of --prove to translate.")
    ] = 1000,
) -> None:
    """Import a model of another engine as a model folder.

    The model can then translate, be evaluated and exported, and be trained further with
    `mt train --init-from`.
    """
    from mt.cli.output import tell
    from mt.convert.importing import import_and_prove

    tell("\n".join(import_and_prove(folder, output, prove, lines)))
