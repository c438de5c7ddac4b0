"""`mt attend`: show the attention weights for one sentence, in the terminal or as an SVG file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mt.cli.options import ModelPath

if TYPE_CHECKING:
    from mt.report.heatmap import Figure


def attend(
    model: ModelPath,
    sentence: Annotated[str, typer.Argument(help="The source sentence.", show_default=False)],
    target: Annotated[
        str | None, typer.Option(help="The translation to show (default: the model's translation).")
    ] = None,
    kind: Annotated[
        Literal["all", "encoder", "decoder", "cross"],
        typer.Option(help="The attention to show; cross is from the decoder to the source."),
    ] = "all",
    layer: Annotated[
        str | None,
        typer.Option(help="A layer number from 1, or all (default: the second to last layer)."),
    ] = None,
    head: Annotated[
        str, typer.Option(help="A head number from 1, all, or mean (the average of all heads).")
    ] = "mean",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the heat maps to this SVG file instead of the terminal."
        ),
    ] = None,
) -> None:
    """Show the attention weights of a model for one sentence as heat maps.

    There are maps for the encoder, for the decoder, and for the attention from the decoder to the
    source. Without --target, the model first translates the sentence.
    """
    from mt.cli.output import check_output, print_result, write_text
    from mt.report import attention
    from mt.report.heatmap import as_svg

    check_output(output)
    attended = attention.attend(model, sentence, target)
    chosen = attention.figures(attended, kind, layer, head)
    if output is None:
        _print_maps([f"source       {attended.src}", f"translation  {attended.tgt}"], chosen)
    else:
        write_text(output, as_svg(chosen, [attended.src, attended.tgt]))
        print_result(f"{output}: {sum(len(figure.maps) for figure in chosen)} maps")


def _print_maps(headings: list[str], figures: "list[Figure]") -> None:
    """Print the maps in color on a terminal, and as ASCII percentages to a file or pipe."""
    from rich.console import Console
    from rich.text import Text

    from mt.report.heatmap import as_text

    console = Console(highlight=False, soft_wrap=True)
    plain = not console.is_terminal or not console.encoding.startswith("utf")
    width = console.width if console.is_terminal else 80
    text = Text("\n".join([*headings, ""]))
    for figure in figures:
        for heat_map in figure.maps:
            text.append(f"\n{figure.title}, {heat_map.title}\n", style="bold")
            text.append(f"{figure.note}{'; percent' if plain else ''}\n", style="dim")
            text.append_text(as_text(heat_map, width, plain))
    if plain:
        encoding = sys.stdout.encoding or "utf-8"
        typer.echo(text.plain.encode(encoding, "backslashreplace").decode(encoding), nl=False)
    else:
        console.print(text, end="")
