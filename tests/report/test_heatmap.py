"""Read heat maps back, from the cells and labels of the text and from the parsed SVG."""

import itertools
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from mt.report.heatmap import SHADES, Figure, HeatMap, as_svg, as_text

SVG = "{http://www.w3.org/2000/svg}"
TOKENS = ["_Ein", "_Hund", "_l", "auf", "t", ".", "</s>"]


def heat_map(rows: list[str], columns: list[str]) -> HeatMap:
    """Make a map whose rows sum to 1 and whose first row ends with a weight of exactly 0."""
    weights = [
        [float((i + 2) * (j + 1) % 7 + 1) for j in range(len(columns))] for i in range(len(rows))
    ]
    weights[0][-1] = 0.0
    return HeatMap(
        "layer 1", rows, columns, [[weight / sum(row) for weight in row] for row in weights]
    )


# Text


def read_back(text: str, rows: list[str]) -> Iterator[list[str]]:
    """Yield the cells of each row of a plain map."""
    for label in rows:
        [line] = [line for line in text.split("\n") if line.lstrip().startswith(f"{label} ")]
        cells = line.split(f"{label} ", 1)[1]
        yield [cells[i : i + 3] for i in range(0, len(cells), 3)]


def test_plain_text_is_ascii_and_holds_every_weight_in_percent() -> None:
    subject = heat_map(["<s>", "_A", "_dog"], TOKENS)
    text = as_text(subject, 80, plain=True).plain
    assert text.isascii()
    for cells, weights in zip(read_back(text, ["<s>", "_A", "_dog"]), subject.weights, strict=True):
        assert [cell.strip() for cell in cells] == [
            "" if w == 0 else str(round(100 * w)) for w in weights
        ]


def test_a_small_weight_is_a_dot_and_a_whole_one_is_100() -> None:
    text = as_text(HeatMap("", ["x"], list("abc"), [[1.0, 0.004, 0.0]]), 80, plain=True).plain
    assert text.split("\n")[-2] == "x 100 .    "


@pytest.mark.parametrize("plain", [True, False])
def test_each_column_has_its_label_over_it(plain: bool) -> None:
    """Let each row attend to one column only. Its shade must be below that label's first letter."""
    size = len(TOKENS)
    one_hot = [[float(i == j) for j in range(size)] for i in range(size)]
    lines = as_text(HeatMap("", list("abcdefg"), TOKENS, one_hot), 80, plain).plain.split("\n")
    for column, label in enumerate(TOKENS):
        begin = lines[column].index(label)
        full = lines[size + column][begin]
        assert full == ("0" if plain else "\u2588")  # the last digit of 100, or a full block


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("width", [24, 40, 80])
def test_no_line_is_wider_than_the_terminal_and_no_column_is_lost(width: int, plain: bool) -> None:
    columns = [f"token{i}" for i in range(40)]
    text = as_text(heat_map(["row"], columns), width, plain).plain
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert re.findall(r"token\d+", text) == columns
    spans = [(int(a), int(b)) for a, b in re.findall(r"columns (\d+) to (\d+) of 40", text)]
    assert spans[0][0] == 1
    assert spans[-1][1] == 40
    assert all(after[0] == before[1] + 1 for before, after in itertools.pairwise(spans))


def test_wide_characters_and_long_tokens_leave_the_cells_in_line() -> None:
    rows = [
        "\u65e5\u672c\u8a9e",
        "\U0001f600",
        "a",
        "\u05e9\u05dc\u05d5\u05dd",
        "Donaudampfschifffahrtsgesellschaft",
        "e\u0301",
    ]
    text = as_text(HeatMap("", rows, ["x"], [[1.0]] * len(rows)), 80, plain=False).plain
    lines = text.split("\n")[1:-1]
    # A label is 16 wide, the space after it 1, and a cell 2.
    assert {cell_len(line) for line in lines} == {19}
    assert sum("\u2026" in line for line in lines) == 1


def test_shades_and_colours_grow_with_the_weight() -> None:
    weights = [0.01, 0.1, 0.3, 0.6, 1.0]
    text = as_text(HeatMap("", ["x"], list("abcde"), [weights]), 80, plain=False)
    assert text.plain.split("\n")[-2] == "x " + "".join(shade for _, shade in SHADES)
    assert len({span.style for span in text.spans}) == len(weights)


def test_control_characters_are_not_printed() -> None:
    text = as_text(HeatMap("", ["\x1b[2J"], ["a\u2028b"], [[1.0]]), 80, plain=False).plain
    assert "\x1b" not in text
    assert "\u2028" not in text


# SVG


def parsed(
    figures: list[Figure], headings: tuple[str, ...] = ("Ein Hund", "A dog")
) -> ElementTree.Element:
    return ElementTree.fromstring(as_svg(figures, headings))


def squares(svg: ElementTree.Element) -> list[ElementTree.Element]:
    return [each for each in svg.iter(f"{SVG}rect") if each.get("class") == "c"]


def tooltip(square: ElementTree.Element) -> str:
    return str(square.findtext(f"{SVG}title"))


def figure(*maps: HeatMap, per_row: int = 2) -> Figure:
    return Figure("Cross-attention", "rows, columns", maps, per_row)


def test_each_weight_is_a_square_with_a_tooltip_of_its_tokens_and_value() -> None:
    subject = heat_map(["a", "b"], ["x", "y", "z"])
    tips = [tooltip(square) for square in squares(parsed([figure(subject)]))]
    pairs = [(row, column) for row in "ab" for column in "xyz"]
    weights = [weight for row in subject.weights for weight in row]
    expected = [
        f"{r} \u2192 {c}: {weight:.1%}"
        for (r, c), weight in zip(pairs, weights, strict=True)
        if weight
    ]
    assert tips == expected
    assert len(tips) == 5  # a weight of exactly 0 is left blank


def test_darker_is_more() -> None:
    subject = heat_map(["a", "b"], ["x", "y", "z"])
    shades = []  # (weight, darkness) of each square
    for square in squares(parsed([figure(subject)])):
        fill = str(square.get("fill"))
        weight = float(tooltip(square).split(": ")[1].rstrip("%"))
        shades.append((weight, -sum(int(fill[i : i + 2], 16) for i in (1, 3, 5))))
    assert [dark for _, dark in sorted(shades)] == sorted(dark for _, dark in shades)
    assert len({dark for _, dark in shades}) > 3


HOSTILE = [
    "<&>\"'",
    "]]>",
    "</text>",
    "a\x00b",
    "\ufffe",
    "\U0001f469\u200d\U0001f680",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0633\u0644\u0627\u0645",
    "e\u0301",
]


def test_any_token_comes_back_from_a_parser() -> None:
    svg = parsed([figure(heat_map(HOSTILE, HOSTILE))], ("<b>",))
    labels = [(each.text or "").strip("\u2068\u2069") for each in svg.iter(f"{SVG}text")]
    for token in HOSTILE:
        assert labels.count(token.replace("\x00", "\ufffd").replace("\ufffe", "\ufffd")) == 2, token
    assert "<b>" in labels


def test_right_to_left_text_has_its_own_direction_and_other_text_none() -> None:
    svg = as_svg([figure(heat_map(["\u2581\u05e9\u05dc", "\u2581a"], ["\u0633", "1"]))], ["x"])
    assert "\u2068\u2581\u05e9\u05dc\u2069</text>" in svg
    assert "\u2068\u0633\u2069</text>" in svg
    assert ">\u2581a</text>" in svg
    assert ">1</text>" in svg


def places(
    element: ElementTree.Element, x: float = 0, y: float = 0
) -> Iterator[tuple[ElementTree.Element, float, float]]:
    """Yield every element with its position, including the shifts of all groups around it."""
    if moved := re.fullmatch(r"translate\((-?\d+) (-?\d+)\)", element.get("transform", "")):
        x, y = x + int(moved[1]), y + int(moved[2])
    yield element, x, y
    for child in element:
        yield from places(child, x, y)


def test_nothing_is_drawn_outside_the_picture_and_no_square_over_another() -> None:
    small, long = (
        heat_map(list("ab"), list("xyz")),
        heat_map([f"token{i}" for i in range(50)], [f"wort{i}" for i in range(60)]),
    )
    svg = parsed(
        [figure(small), figure(small), figure(long), figure(*[small] * 5)], ("x" * 400, "y")
    )
    width, height = float(str(svg.get("width"))), float(str(svg.get("height")))
    assert svg.get("viewBox") == f"0 0 {width:.0f} {height:.0f}"
    seen = set()
    for element, x, y in places(svg):
        if element.tag == f"{SVG}rect" and element.get("class"):
            left, top = x + float(element.get("x", 0)), y + float(element.get("y", 0))
            assert left >= 0
            assert top >= 0
            assert left + float(str(element.get("width"))) <= width
            assert top + float(str(element.get("height"))) <= height
            if element.get("class") == "c":
                assert (left, top) not in seen
                seen.add((left, top))


def test_a_grid_of_heads_has_its_labels_at_the_left_and_the_top_only() -> None:
    maps = [HeatMap(f"head {i}", ["row"], ["column"], [[1.0]]) for i in range(6)]
    texts = [each.text for each in parsed([figure(*maps, per_row=3)]).iter(f"{SVG}text")]
    assert texts.count("row") == 2
    assert texts.count("column") == 3
    assert [text for text in texts if text and text.startswith("head")] == [
        f"head {i}" for i in range(6)
    ]


def test_one_scale_of_colours_for_all_maps() -> None:
    """Check that the largest weight of all maps is the darkest, and that the legend shows it."""
    flat, peaked = (
        HeatMap("", ["a"], ["x", "y"], [[0.5, 0.5]]),
        HeatMap("", ["a"], ["x", "y"], [[0.8, 0.2]]),
    )
    svg = parsed([figure(flat), figure(peaked)])
    fills = [square.get("fill") for square in squares(svg)]
    assert fills[0] == fills[1] != fills[2]
    assert "80%" in [each.text for each in svg.iter(f"{SVG}text")]
