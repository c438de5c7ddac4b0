"""Read YAML 1.2 into plain values, and remember the line of each value for error messages.

Unquoted values follow YAML 1.2: `no`, `12:30` and `2024-01-01` are text, `3e-4` is a number, and
`010` is ten. As an extension, `1_000` is a whole number. `.inf` is text, because no option accepts
infinity.
Tags, cycles, deep nesting and exponentially growing aliases are refused before they cost much.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

MAX_NODES = 10_000  # keys and values, after aliases are expanded
MAX_DEPTH = 40  # levels of nesting; the schema needs 5, and Python allows far more
KeyPath = tuple[str | int, ...]
REFUSED = ...  # replaces a value that has been reported, so that it is not reported twice
_TAG = "tag:yaml.org,2002:"
# Marks a tag that is written in the file. Real tags contain no space, so none starts like this.
_EXPLICIT = "explicit "


class Place(NamedTuple):
    """Where a message says the mistake is: a line of the file, or the override of the key `path`.

    Messages are sorted by `order`: first by line, then by override.
    """

    order: int
    text: str
    path: KeyPath | None = None  # None for a line of the file


@dataclass(eq=False)
class Mistake(Exception):
    """One line of the error message. It is raised if reading cannot continue, else collected."""

    place: Place
    path: KeyPath
    text: str

    def __str__(self) -> str:
        name = "" if not self.path or self.path == self.place.path else f"{dotted(self.path)}: "
        line = f"{self.place.text}: {name}{self.text}"
        # Keys and values come from the file, so escape the characters that would break the line,
        # move the cursor, or fail to print.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def read(
    text: str, place: Callable[[int], Place]
) -> tuple[Any, dict[KeyPath, Place], list[Mistake]]:
    """Parse YAML `text`. Returns its value, the places of its keys and list items, and mistakes.

    `place` makes a `Place` from a line number. Raises `Mistake` if `text` cannot be read at all.
    """
    reader = None
    try:
        reader = _Reader(text, place)
        node = reader.get_single_node()
        reader.nodes = 0  # parsing counts each anchor once; `convert` counts every use
        return None if node is None else reader.convert(node, ()), reader.places, reader.mistakes
    # PyYAML lets the last two escape, for example for "\UFFFFFFFF".
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line if mark else reader.line if reader else text.count("\n", 0, position)
        reason = ", ".join(
            filter(None, (getattr(error, name, "") for name in ("context", "problem", "reason")))
        )
        raise Mistake(place(line + 1), (), f"not valid YAML: {reason or error}") from None


class _Reader(yaml.SafeLoader):
    """Parses YAML with PyYAML, but builds the values itself, so no Python object can be created."""

    def __init__(self, text: str, place: Callable[[int], Place]) -> None:
        self.place = place
        self.places: dict[KeyPath, Place] = {}
        self.mistakes: list[Mistake] = []
        self.nodes = self.depth = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self.depth += 1
        self.check_size(event.start_mark, 1, self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and getattr(event, "tag", None) is not None:
            node.tag = _EXPLICIT + event.tag.replace(_TAG, "!!")
        return node

    def check_size(self, mark: Any, nodes: int, depth: int) -> None:
        """Count `nodes` more values at nesting level `depth`; raise `Mistake` above a limit."""
        self.nodes += nodes
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:  # this also ends a cycle of aliases
            text = f"more than {MAX_NODES:,} values or {MAX_DEPTH} levels, with aliases expanded"
            raise Mistake(self.place(mark.line + 1), (), text)

    def refuse(self, node: yaml.Node, path: KeyPath, text: str) -> Any:
        """Record a mistake at `node`, and return a placeholder for the value."""
        self.mistakes.append(Mistake(self.place(node.start_mark.line + 1), path, text))
        return REFUSED

    def convert(self, node: yaml.Node, path: KeyPath, key: yaml.Node | None = None) -> Any:
        """Convert `node` to a plain value. If `key` is given, the line of the key is recorded."""
        self.places[path] = self.place((key or node).start_mark.line + 1)
        self.check_size(node.start_mark, 1, len(path))
        if node.tag.startswith(_EXPLICIT):
            return self.refuse(
                node, path, f"tag `{node.tag.removeprefix(_EXPLICIT)}` is not allowed; leave it out"
            )
        if isinstance(node, yaml.ScalarNode):
            return self.convert_scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert(item, (*path, i)) for i, item in enumerate(node.value)]
        return {
            name: self.convert(child, (*path, name), key)
            for name, (key, child) in self.entries(node, path).items()
        }

    def entries(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Map each key to the nodes of the key and its value.

        A section's own keys override keys that are merged into it (`<<`). Keys of earlier merges
        override keys of later ones.
        """
        direct: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        self.check_size(node.start_mark, len(node.value), len(path))
        for key, child in node.value:
            if key.tag == _TAG + "merge":
                for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    if isinstance(source, yaml.MappingNode):
                        merged = {**self.entries(source, (*path, "<<")), **merged}
                    else:
                        self.refuse(source, path, "`<<` can only merge sections")
            elif key.tag != _TAG + "str" or not key.value.isprintable():
                self.refuse(
                    key, path, "a key must be printable text: put it in quotes, without a tag"
                )
            elif key.value in direct:
                self.refuse(
                    key,
                    (*path, key.value),
                    f"already set on line {direct[key.value][0].start_mark.line + 1}",
                )
            else:
                direct[key.value] = (key, child)
        return {**merged, **direct}

    def convert_scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind == "int":
            number = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)) if len(text) < 99 else 2**63
            if abs(number) < 2**63:
                return number
            return self.refuse(node, path, f"{shorten(text)} does not fit in 64 bits")
        if kind == "float":
            return float(text)
        if any("\ud800" <= c <= "\udfff" for c in text):
            return self.refuse(node, path, "half a surrogate pair is not valid text")
        return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


_Reader.yaml_implicit_resolvers = {}  # drop the rules of YAML 1.1
for _kind, _first, _pattern in [
    ("bool", "tTfF", r"true|True|TRUE|false|False|FALSE"),
    ("null", ["~", "n", "N", ""], r"~|null|Null|NULL|"),
    ("int", "-+0123456789", r"[-+]?[0-9](_?[0-9])*|0x[0-9a-fA-F]+|0o[0-7]+"),
    ("float", "-+.0123456789", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("merge", "<", r"<<"),
]:
    _Reader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def dotted(path: KeyPath) -> str:
    """Return a key path as text, such as `data.train[0].src`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" for part in path
    ).removeprefix(".")


def format_value(value: object) -> str:
    """Format a value for a message; null, true and false are written as in YAML."""
    return json.dumps(value) if isinstance(value, bool | None) else shorten(repr(value))


def shorten(text: str, limit: int = 60) -> str:
    """Shorten `text` to `limit` characters, with an ellipsis if something is cut off."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
