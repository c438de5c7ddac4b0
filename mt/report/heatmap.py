"""Attention weights as pictures: a heat map of characters for a terminal or a log, and a standalone
SVG.

In characters a column's label stands on a line of its own, above the guides to the columns before
it, so that tokens of any script and length stay words that can be read; what is wider than the
terminal goes on in a further block of columns.
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
ON_TERMINAL: tuple[Colour, ...] = (
    (92, 124, 176),
    (74, 163, 198),
    (236, 178, 64),
    (232, 92, 58),
)  # seen on black and on white
SHADES = (
    (0.02, "\u00b7 "),
    (0.15, "\u2591\u2591"),
    (0.4, "\u2592\u2592"),
    (0.7, "\u2593\u2593"),
    (2.0, "\u2588\u2588"),
)

MAX_LABEL = 16  # columns of a terminal; longer tokens are cut

# Of an SVG, in pixels.
FONT, SMALL_FONT, TITLE_FONT, HEAD_FONT = 12, 10, 14, 15
CELL, SMALL_CELL = 22, 14  # a map alone, a map among others
MARGIN, GAP = 20, 28
FLOW_WIDTH = 1240  # figures stand side by side up to here
SLOPE = math.radians(50)  # of the labels of columns
STYLE = (
    "text{font-family:'DejaVu Sans','Noto Sans','Segoe UI',Helvetica,Arial,sans-serif;fill:#1b1f24;white-space:pre}"
    ".t{font-weight:bold}.n{fill:#57606a}.f{fill:none;stroke:#8c959f}.c:hover{stroke:#d1242f;stroke-width:2}"
)


@dataclass(frozen=True)
class HeatMap:
    """One matrix of weights between two rows of tokens."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    weights: Sequence[
        Sequence[float]
    ]  # [rows][columns] from 0 to 1; exactly 0 is left blank: it was not to be looked at


@dataclass(frozen=True)
class Figure:
    """Maps between the same tokens, `per_row` beside each other."""

    title: str
    note: str  # what rows and columns are
    maps: Sequence[HeatMap]
    per_row: int = 1


def as_text(heat_map: HeatMap, width: int, plain: bool) -> Text:
    """The map in at most `width` columns: shades and colours relative to its largest weight, or
    `plain`, percent in ASCII.
    """
    longest = min(MAX_LABEL, width // 3)
    rows, columns = (
        [_clipped(label, longest, plain) for label in labels]
        for labels in (heat_map.rows, heat_map.columns)
    )
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


def _blocks(columns: Sequence[str], room: int, cell: int) -> Iterator[tuple[int, int]]:
    """Runs of columns whose cells and labels fit into `room`, at least one in each."""
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
    """The label in at most `width` columns; in plain text SentencePiece's mark of a word's
    beginning is an underscore.
    """
    label = _printable(label.replace("\u2581", "_") if plain else label)
    if cell_len(label) <= width:
        return label
    return set_cell_size(label, width - 1).rstrip() + ("~" if plain else "\u2026")


def _printable(text: str) -> str:
    """Without what moves a cursor, ends a line or is no character of XML."""
    return "".join(
        "\ufffd"
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\ufffe\uffff"
        else c
        for c in text
    )


def _scale(maps: Sequence[HeatMap]) -> float:
    """The largest weight, which has the strongest colour."""
    return (
        max((weight for each in maps for row in each.weights for weight in row), default=0.0) or 1.0
    )


def _colour(stops: Sequence[Colour], part: float) -> Colour:
    """Between the colours `stops` of 0 to 1."""
    place = min(max(part, 0.0), 1.0) * (len(stops) - 1)
    lower = min(int(place), len(stops) - 2)
    red, green, blue = (
        round(a + (b - a) * (place - lower))
        for a, b in zip(stops[lower], stops[lower + 1], strict=True)
    )
    return red, green, blue


@dataclass(frozen=True)
class _Drawing:
    """A part of an SVG, and the room it takes right of and below its origin."""

    svg: str
    width: float
    height: float


def as_svg(figures: Sequence[Figure], headings: Sequence[str]) -> str:
    """A standalone picture: `headings`, below them the figures, and one colour scale for all."""
    scale = _scale([each for figure in figures for each in figure.maps])
    lines: list[list[_Drawing]] = [[]]
    for drawing in (_figure(figure, scale) for figure in figures):
        if lines[-1] and sum(each.width + GAP for each in lines[-1]) + drawing.width > FLOW_WIDTH:
            lines.append([])
        lines[-1].append(drawing)
    head = _stacked(
        [_line(_cut(heading, FLOW_WIDTH, HEAD_FONT), HEAD_FONT, "h") for heading in headings], 0
    )
    page = _stacked([head, *(_beside(line, GAP) for line in lines), _legend(scale)], GAP)
    width, height = (round(side + 2 * MARGIN) for side in (page.width, page.height))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{_escaped(' / '.join(headings))}</title>\n<style>{STYLE}</style>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{_moved(page, MARGIN, MARGIN)}</svg>\n'
    )


def _moved(drawing: _Drawing, x: float, y: float) -> str:
    return f'<g transform="translate({x:.0f} {y:.0f})">\n{drawing.svg}</g>\n'


def _stacked(drawings: Sequence[_Drawing], gap: float) -> _Drawing:
    tops = itertools.accumulate((each.height + gap for each in drawings), initial=0.0)
    svg = "".join(_moved(each, 0, y) for each, y in zip(drawings, tops, strict=False))
    return _Drawing(
        svg, max(each.width for each in drawings), sum(each.height + gap for each in drawings) - gap
    )


def _beside(drawings: Sequence[_Drawing], gap: float) -> _Drawing:
    lefts = itertools.accumulate((each.width + gap for each in drawings), initial=0.0)
    svg = "".join(_moved(each, x, 0) for each, x in zip(drawings, lefts, strict=False))
    return _Drawing(
        svg, sum(each.width + gap for each in drawings) - gap, max(each.height for each in drawings)
    )


def _figure(figure: Figure, scale: float) -> _Drawing:
    """Title, note, and the maps in rows; only the first map of a row has labels at its left, only
    the first row at its top.
    """
    cell, font = (CELL, FONT) if len(figure.maps) == 1 else (SMALL_CELL, SMALL_FONT)
    rows = [
        _beside(
            [
                _map(each, cell, font, scale, left=not i, top=not start)
                for i, each in enumerate(row)
            ],
            SMALL_CELL,
        )
        for start, row in (
            (n, figure.maps[n : n + figure.per_row])
            for n in range(0, len(figure.maps), figure.per_row)
        )
    ]
    head = _stacked([_line(figure.title, TITLE_FONT, "t"), _line(figure.note, FONT, "n")], 0)
    return _stacked([head, _stacked(rows, SMALL_CELL)], 8)


def _map(
    heat_map: HeatMap, cell: int, font: int, scale: float, *, left: bool, top: bool
) -> _Drawing:
    """Title, squares, and where they are asked for the labels of rows and columns."""
    rows, columns = (
        [_clipped(label, MAX_LABEL, plain=False) for label in labels]
        for labels in (heat_map.rows, heat_map.columns)
    )
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
        at = x + (i + 0.6) * cell, y - 5
        texts.append(
            _text(
                label,
                *at,
                font,
                f'transform="rotate(-{math.degrees(SLOPE):.0f} {at[0]:.0f} {at[1]:.0f})"',
            )
        )
    overhang = max(0.0, longest * math.cos(SLOPE) - cell / 2)
    width = max(x + len(columns) * cell + overhang, x + title.width)
    return _Drawing(
        _moved(title, x, 0) + "".join(texts) + _squares(heat_map, x, y, cell, scale),
        width,
        y + len(rows) * cell,
    )


def _squares(heat_map: HeatMap, x: float, y: float, cell: int, scale: float) -> str:
    """One for each weight, with its tokens and its value as a tooltip, and a frame around all."""
    svg = []
    for i, (row, weights) in enumerate(zip(heat_map.rows, heat_map.weights, strict=True)):
        for j, (column, weight) in enumerate(zip(heat_map.columns, weights, strict=True)):
            if weight:
                place = (
                    f'x="{x + j * cell:.0f}" y="{y + i * cell:.0f}" width="{cell}" height="{cell}"'
                )
                tip = f"{_isolated(row)} \u2192 {_isolated(column)}: {weight:.1%}"
                svg.append(
                    f'<rect class="c" {place} fill="{_fill(weight / scale)}"><title>{tip}</title></rect>\n'
                )
    size = f'width="{len(heat_map.columns) * cell}" height="{len(heat_map.rows) * cell}"'
    return "".join([*svg, f'<rect class="f" x="{x:.0f}" y="{y:.0f}" {size}/>\n'])


def _legend(scale: float) -> _Drawing:
    """The colours from 0 to the largest weight."""
    steps, wide = 20, 8
    bar = "".join(
        f'<rect x="{wide * i}" width="{wide}" height="12" fill="{_fill(i / (steps - 1))}"/>\n'
        for i in range(steps)
    )
    frame = f'<rect class="f" width="{wide * steps}" height="12"/>\n'
    colours = _Drawing(bar + frame, wide * steps, 12)
    return _beside([_line("0%", FONT, "n"), colours, _line(f"{scale:.0%}", FONT, "n")], 8)


def _fill(part: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*_colour(ON_WHITE, part))


def _line(text: str, font: int, style: str) -> _Drawing:
    """A line of text whose letters fill the first `font` pixels below its origin."""
    return _Drawing(
        _text(text, 0, 0.85 * font, font, f'class="{style}"'), _text_width(text, font), 1.5 * font
    )


def _text(text: str, x: float, y: float, font: int, attributes: str) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{font}" {attributes}>{_isolated(text)}</text>\n'
    )


def _isolated(text: str) -> str:
    """Escaped; right-to-left text in marks that give it its own direction, so that what it begins
    with is drawn at its right.
    """
    escaped = _escaped(text)
    return (
        f"\u2068{escaped}\u2069"
        if any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)
        else escaped
    )


def _escaped(text: str) -> str:
    return escape(_printable(text))


def _cut(text: str, width: float, font: int) -> str:
    return _clipped(text, int(width / _text_width("x", font)), plain=False)


def _text_width(text: str, font: int) -> float:
    """Pixels that the text takes, about."""
    return 0.62 * font * cell_len(_printable(text))
