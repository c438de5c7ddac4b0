"""`mt export`: export a model, and prove that it translates the same."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mt.cli.options import ModelPath


def export(
    model: ModelPath,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to create.", show_default=False)
    ],
    to: Annotated[
        Literal["ctranslate2", "marian", "pegasus", "onnx"],
        typer.Option(
            help="The format; for Hugging Face, marian (post-norm) or pegasus (pre-norm)."
        ),
    ] = "ctranslate2",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="CTranslate2's type for the weights: int8, float16, ... (default: float32)."
        ),
    ] = None,
    prove: Annotated[
        str | None,
        typer.Option(
            help="Source text for the proof (default: the model's test or validation text)."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            min=0, help="How many lines both engines translate for the proof; 0: no proof."
        ),
    ] = 1000,
) -> None:
    """Export a model for another engine, and prove that it translates the same.

    Both engines translate real text. At least 995 of 1,000 lines must be identical, and all others
    must be ties.
    """
    from mt.cli.output import tell
    from mt.convert.export import export_and_prove

    report = export_and_prove(model, output, to, quantization, prove, lines)
    tell("\n".join(report))
