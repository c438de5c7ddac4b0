"""`mt import`: convert a model of another engine to a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def importing(
    format: Annotated[
        Literal["marian"],
        typer.Argument(
            help="The format: marian, for Hugging Face's Marian models, such as OPUS-MT."
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(help="The folder of the downloaded model.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The model folder to create.", show_default=False)
    ],
    prove: Annotated[
        str | None,
        typer.Option(help="Source text to check that mt and transformers translate it the same."),
    ] = None,
    lines: Annotated[
        int, typer.Option(min=1, help="How many lines of --prove to translate.")
    ] = 1000,
) -> None:
    """Import a Hugging Face Marian model, such as OPUS-MT.

    Creates a model folder that all commands accept. To train the model further, use
    `mt train --init-from`.
    """
    from mt.cli.output import print_result
    from mt.convert.importing import import_and_verify

    print_result("\n".join(import_and_verify(folder, output, prove, lines)))
