"""`mt export`: convert a model to the format of another engine."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from mt.cli.options import ModelPath


def export(
    model: ModelPath,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="The folder to create for the exported model.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Literal["ctranslate2", "marian", "pegasus", "onnx"],
        typer.Option(
            help="The format. For Hugging Face: marian if model.norm is post, pegasus if pre."
        ),
    ] = "ctranslate2",
    quantization: Annotated[
        str | None,
        typer.Option(
            help="Weight type for CTranslate2, such as int8 or float16 (default: float32)."
        ),
    ] = None,
    prove: Annotated[
        str | None,
        typer.Option(
            help="Source text for the check (default: the model's test or validation text)."
        ),
    ] = None,
    lines: Annotated[
        int,
        typer.Option(
            min=0, help="How many lines to translate with both engines; 0 skips the check."
        ),
    ] = 1000,
) -> None:
    """Export a model to another engine, and check that it translates the same there.

    mt and the other engine translate the same text. At least 995 of 1,000 lines must be identical.
    In the others, both translations must have nearly the same score.
    """
    from mt.cli.output import print_result
    from mt.convert.export import export_and_verify

    report = export_and_verify(model, output, to, quantization, prove, lines)
    print_result("\n".join(report))
