"""Draw heat maps of attention weights, as text for a terminal or a log, and as standalone SVG.

In the text, each column label has its own line, and vertical lines lead down from the labels to
their columns. So labels of any script and length can be read horizontally. A map that is too wide
for the terminal is split into blocks of columns.
"""

import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from rich.cells import cell_len, set_cell_size
from rich.text import Text

Colour = tuple[int, int, int]

ON_WHITE: tuple[Colour, ...] = ((255, 255, 255), (158, 202, 225), (33, 113, 181), (8, 38, 94))
# Colours that are visible on black and on white terminals.
ON_TERMINAL: tuple[Colour, ...] = (
    (92, 124, 176),
    (74, 163, 198),
    (236, 178, 64),
    (232, 92, 58),
)
# (limit, characters): these characters show weights below the limit, as a share of the largest.
SHADES = (
    (0.02, "\u00b7 "),
    (0.15, "\u2591\u2591"),
    (0.4, "\u2592\u2592"),
    (0.7, "\u2593\u2593"),
    (2.0, "\u2588\u2588"),
)

MAX_LABEL = 16  # maximum width of a label in terminal columns; longer labels are cut

# Sizes in the SVG, in pixels. The small ones are for figures with several maps.
FONT, SMALL_FONT, TITLE_FONT, HEAD_FONT = 12, 10, 14, 15
CELL, SMALL_CELL = 22, 14
MARGIN, GAP = 20, 28
FLOW_WIDTH = 1240  # figures are placed side by side up to this width
SLOPE = math.radians(50)  # angle of the column labels
STYLE = (
    "text{font-family:'DejaVu Sans','Noto Sans','Segoe UI',Helvetica,Arial,sans-serif;"
    "fill:#1b1f24;white-space:pre}.t{font-weight:bold}.n{fill:#57606a}"
    ".f{fill:none;stroke:#8c959f}.c:hover{stroke:#d1242f;stroke-width:2}"
)


@dataclass(frozen=True)
class HeatMap:
    """A matrix of weights from 0 to 1, with a token for each row and column.

    Weights of exactly 0, which masked positions have, are left blank.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    weights: Sequence[Sequence[float]]  # [rows][columns]


@dataclass(frozen=True)
class Figure:
    """Heat maps over the same tokens, drawn with `per_row` of them side by side."""

    title: str
    note: str  # explains the rows and columns
    maps: Sequence[HeatMap]
    per_row: int = 1


def as_text(heat_map: HeatMap, width: int, plain: bool) -> Text:
    """Draw the map in at most `width` terminal columns.

    If `plain`, the cells are percentages, and all text is ASCII, except the labels. Otherwise, the
    cells are shades and colours, relative to the largest weight of the map.
    """
    rows, columns = _labels(heat_map, min(MAX_LABEL, width // 3), plain)
    indent = max(map(cell_len, rows)) + 1
    scale = _scale([heat_map])
    text = Text()
    for start, end in _blocks(columns, width - indent, 3 if plain else 2):
        if (start, end) != (0, len(columns)):
            text.append(f"columns {start + 1} to {end} of {len(columns)}\n", style="dim")
        text.append_text(_header(columns[start:end], indent, plain))
        for label, weights in zip(rows, heat_map.weights, strict=True):
            text.append(" " * (indent - 1 - cell_len(label)) + label + " ")
            for weight in weights[start:end]:
                text.append_text(Text(_percent(weight)) if plain else _shade(weight, scale))
            text.append("\n")
    return text


def _labels(heat_map: HeatMap, width: int, plain: bool) -> tuple[list[str], list[str]]:
    """Return the labels of rows and columns, each cut to `width` terminal columns."""
    rows, columns = (
        [_clipped(label, width, plain) for label in labels]
        for labels in (heat_map.rows, heat_map.columns)
    )
    return rows, columns


def _blocks(columns: Sequence[str], room: int, cell: int) -> Iterator[tuple[int, int]]:
    """Split the columns into (start, end) blocks whose cells and labels fit into `room`.

    Each block has at least one column. `cell` is the width of a cell.
    """
    start = 0
    while start < len(columns):
        end = start + 1
        while (
            end < len(columns)
            and (end - start) * cell + max(cell, 2 + cell_len(columns[end])) <= room
        ):
            end += 1
        yield start, end
        start = end


def _header(columns: Sequence[str], indent: int, plain: bool) -> Text:
    guide = "  |" if plain else "\u2502 "
    lines = (
        " " * indent + guide * number + ("  " if plain else "") + label
        for number, label in enumerate(columns)
    )
    return Text("".join(f"{line}\n" for line in lines))


def _percent(weight: float) -> str:
    """Format a percentage in three characters: `.` if it rounds to 0, blank if it is 0."""
    percent = f"{100 * weight:.0f}"
    return " " * 3 if weight == 0 else " . " if percent == "0" else f"{percent:>3}"


def _shade(weight: float, scale: float) -> Text:
    part = weight / scale
    shade = next(shade for limit, shade in SHADES if part < limit)
    return (
        Text("  ")
        if weight == 0
        else Text(shade, style="rgb({},{},{})".format(*_colour(ON_TERMINAL, part)))
    )


def _clipped(label: str, width: int, plain: bool) -> str:
    """Cut the label to at most `width` terminal columns.

    In plain text, SentencePiece's mark for the start of a word is replaced by an underscore.
    """
    label = _printable(label.replace("\u2581", "_") if plain else label)
    if cell_len(label) <= width:
        return label
    return set_cell_size(label, width - 1).rstrip() + ("~" if plain else "\u2026")


def _printable(text: str) -> str:
    """Replace control characters, line separators and characters that XML does not allow."""
    return "".join(
        "\ufffd"
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\ufffe\uffff"
        else c
        for c in text
    )


def _scale(maps: Sequence[HeatMap]) -> float:
    """Return the largest weight, or 1 if all weights are 0."""
    weights = (weight for heat_map in maps for row in heat_map.weights for weight in row)
    return max(weights, default=0.0) or 1.0


def _colour(stops: Sequence[Colour], part: float) -> Colour:
    """Interpolate between the colours `stops`, which are evenly spaced from 0 to 1."""
    place = min(max(part, 0.0), 1.0) * (len(stops) - 1)
    lower = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - lower))
        for a, b in zip(stops[lower], stops[lower + 1], strict=True)
    )
    return red, green, blue


@dataclass(frozen=True)
class _Drawing:
    """A piece of SVG, with its width and height."""

    svg: str
    width: float
    height: float


def as_svg(figures: Sequence[Figure], headings: Sequence[str]) -> str:
    """Draw a standalone picture with headings, figures and a legend.

    All maps share one colour scale.
    """
    scale = _scale([heat_map for figure in figures for heat_map in figure.maps])
    lines: list[list[_Drawing]] = [[]]
    for drawing in (_figure(figure, scale) for figure in figures):
        if lines[-1] and _beside([*lines[-1], drawing], GAP).width > FLOW_WIDTH:
            lines.append([])
        lines[-1].append(drawing)
    max_label = int(FLOW_WIDTH / _text_width("x", HEAD_FONT))
    head = _stacked(
        [_line(_clipped(heading, max_label, False), HEAD_FONT, "h") for heading in headings], 0
    )
    page = _stacked([head, *(_beside(line, GAP) for line in lines), _legend(scale)], GAP)
    width, height = (round(side + 2 * MARGIN) for side in (page.width, page.height))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{_escaped(' / '.join(headings))}</title>\n<style>{STYLE}</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{_moved(page, MARGIN, MARGIN)}</svg>\n'
    )


def _moved(drawing: _Drawing, x: float, y: float) -> str:
    return f'<g transform="translate({x:.0f} {y:.0f})">\n{drawing.svg}</g>\n'


def _stacked(drawings: Sequence[_Drawing], gap: float) -> _Drawing:
    *tops, end = itertools.accumulate((part.height + gap for part in drawings), initial=0.0)
    svg = "".join(_moved(part, 0, top) for part, top in zip(drawings, tops, strict=True))
    return _Drawing(svg, max(part.width for part in drawings), end - gap)


def _beside(drawings: Sequence[_Drawing], gap: float) -> _Drawing:
    *lefts, end = itertools.accumulate((part.width + gap for part in drawings), initial=0.0)
    svg = "".join(_moved(part, left, 0) for part, left in zip(drawings, lefts, strict=True))
    return _Drawing(svg, end - gap, max(part.height for part in drawings))


def _figure(figure: Figure, scale: float) -> _Drawing:
    """Draw title, note, and a grid of maps, with labels only at the left and top edges."""
    cell, font = (CELL, FONT) if len(figure.maps) == 1 else (SMALL_CELL, SMALL_FONT)
    rows = []
    for start in range(0, len(figure.maps), figure.per_row):
        row = figure.maps[start : start + figure.per_row]
        drawings = [
            _map(heat_map, cell, font, scale, left=i == 0, top=start == 0)
            for i, heat_map in enumerate(row)
        ]
        rows.append(_beside(drawings, SMALL_CELL))
    head = _stacked([_line(figure.title, TITLE_FONT, "t"), _line(figure.note, FONT, "n")], 0)
    return _stacked([head, _stacked(rows, SMALL_CELL)], 8)


def _map(
    heat_map: HeatMap, cell: int, font: int, scale: float, *, left: bool, top: bool
) -> _Drawing:
    """Draw title and squares, with row labels if `left`, and with column labels if `top`."""
    rows, columns = _labels(heat_map, MAX_LABEL, plain=False)
    longest = max(_text_width(label, font) for label in columns)
    title = _line(heat_map.title, FONT, "n")
    x = max(_text_width(label, font) for label in rows) + 8 if left else 0.0
    y = title.height + (longest * math.sin(SLOPE) + font if top else 4.0)
    texts = [
        _text(label, x - 6, y + (i + 0.5) * cell + font / 3, font, 'text-anchor="end"')
        for i, label in enumerate(rows)
        if left
    ]
    for i, label in enumerate(columns if top else []):
        start = x + (i + 0.6) * cell
        rotation = f"rotate(-{math.degrees(SLOPE):.0f} {start:.0f} {y - 5:.0f})"
        texts.append(_text(label, start, y - 5, font, f'transform="{rotation}"'))
    overhang = max(0.0, longest * math.cos(SLOPE) - cell / 2)
    width = max(x + len(columns) * cell + overhang, x + title.width)
    return _Drawing(
        _moved(title, x, 0) + "".join(texts) + _squares(heat_map, x, y, cell, scale),
        width,
        y + len(rows) * cell,
    )


def _squares(heat_map: HeatMap, x: float, y: float, cell: int, scale: float) -> str:
    """Draw a square with a tooltip for each weight, and a frame around all squares."""
    svg = []
    for i, (row, weights) in enumerate(zip(heat_map.rows, heat_map.weights, strict=True)):
        for j, (column, weight) in enumerate(zip(heat_map.columns, weights, strict=True)):
            if weight:
                tip = f"{_isolated(row)} \u2192 {_isolated(column)}: {weight:.1%}"
                svg.append(
                    f'<rect class="c" x="{x + j * cell:.0f}" y="{y + i * cell:.0f}" '
                    f'width="{cell}" height="{cell}" fill="{_fill(weight / scale)}">'
                    f"<title>{tip}</title></rect>\n"
                )
    size = f'width="{len(heat_map.columns) * cell}" height="{len(heat_map.rows) * cell}"'
    return "".join([*svg, f'<rect class="f" x="{x:.0f}" y="{y:.0f}" {size}/>\n'])


def _legend(scale: float) -> _Drawing:
    """Draw the colour scale from 0 to the largest weight."""
    num_steps, step_width = 20, 8
    bar = "".join(
        f'<rect x="{step_width * i}" width="{step_width}" height="12" '
        f'fill="{_fill(i / (num_steps - 1))}"/>\n'
        for i in range(num_steps)
    )
    frame = f'<rect class="f" width="{step_width * num_steps}" height="12"/>\n'
    colours = _Drawing(bar + frame, step_width * num_steps, 12)
    return _beside([_line("0%", FONT, "n"), colours, _line(f"{scale:.0%}", FONT, "n")], 8)


def _fill(part: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_colour(ON_WHITE, part))


def _line(text: str, font: int, style: str) -> _Drawing:
    """Draw a line of text that is `font` pixels high."""
    return _Drawing(
        _text(text, 0, 0.85 * font, font, f'class="{style}"'), _text_width(text, font), 1.5 * font
    )


def _text(text: str, x: float, y: float, font: int, attributes: str) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{font}" {attributes}>{_isolated(text)}</text>\n'
    )


def _isolated(text: str) -> str:
    """Escape text for XML, and isolate right-to-left text.

    The isolating marks give the text its own direction, so that it starts at the right.
    """
    escaped = _escaped(text)
    return (
        f"\u2068{escaped}\u2069"
        if any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
        else escaped
    )


def _escaped(text: str) -> str:
    return escape(_printable(text))


def _text_width(text: str, font: int) -> float:
    """Estimate the width of the text in pixels."""
    return 0.62 * font * cell_len(_printable(text))
