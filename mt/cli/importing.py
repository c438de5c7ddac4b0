"""`mt import`: a model of another engine as a model folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def importing(
    format: Annotated[
        Literal["marian"],
        typer.Argument(help="What it is: a Marian folder of Hugging Face, such as OPUS-MT's."),
    ],
    folder: Annotated[Path, typer.Argument(help="The folder, downloaded.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The new model folder.", show_default=False)
    ],
    prove: Annotated[
        str | None, typer.Option(help="Source text that transformers translates, too, for a proof.")
    ] = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines of it.")] = 1000,
) -> None:
    """Import a model: it then translates, evaluates, exports, and can be trained further (mt train
    --init-from).
    """
    from mt.cli.output import tell
    from mt.convert.importing import import_and_prove

    tell("\n".join(import_and_prove(folder, output, prove, lines)))
