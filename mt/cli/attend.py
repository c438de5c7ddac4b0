"""`mt attend`: attention weights of one sentence, in the terminal or as an SVG."""

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
        str | None, typer.Option(help="A translation of the sentence (default: the model's).")
    ] = None,
    kind: Annotated[
        Literal["all", "encoder", "decoder", "cross"],
        typer.Option(help="Which attention to show; cross is from the decoder to the source."),
    ] = "all",
    layer: Annotated[
        str | None,
        typer.Option(help="A layer, counted from 1, or all (default: the last but one)."),
    ] = None,
    head: Annotated[
        str, typer.Option(help="A head, counted from 1, or all, or their mean.")
    ] = "mean",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write an SVG file instead.")
    ] = None,
) -> None:
    """Show the attention weights of a model for one sentence, as heat maps.

    The maps show the attention of the encoder, of the decoder, and from the decoder to the source.
    """
    from mt.cli.output import check_output, tell, write_text
    from mt.report.attention import attend as look
    from mt.report.attention import figures
    from mt.report.heatmap import as_svg

    check_output(output)
    attended = look(model, sentence, target)
    chosen = figures(attended, kind, layer, head)
    if output is None:
        _show([f"source       {attended.src}", f"translation  {attended.tgt}"], chosen)
    else:
        write_text(output, as_svg(chosen, [attended.src, attended.tgt]))
        tell(f"{output}: {sum(len(figure.maps) for figure in chosen)} maps")


def _show(headings: list[str], figures: "list[Figure]") -> None:
    """Print maps with colors on a terminal, and with percentages in ASCII elsewhere."""
    from rich.console import Console
    from rich.text import Text

    from mt.report.heatmap import as_text

    console = Console(highlight=False, soft_wrap=True)
    plain = not console.is_terminal or not console.encoding.startswith("utf")
    width = console.width if console.is_terminal else 80
    text = Text("\n".join([*headings, ""]))
    for figure in figures:
        for each in figure.maps:
            text.append(f"\n{figure.title}, {each.title}\n", style="bold")
            text.append(f"{figure.note}{'; percent' if plain else ''}\n", style="dim")
            text.append_text(as_text(each, width, plain))
    if plain:
        encoding = sys.stdout.encoding or "utf-8"
        typer.echo(text.plain.encode(encoding, "backslashreplace").decode(encoding), nl=False)
    else:
        console.print(text, end="")
