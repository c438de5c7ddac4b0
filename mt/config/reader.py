"""YAML 1.2 as plain values that know their lines; tags, cycles, deep nesting and exploding aliases
are refused before they cost much.

Plain scalars follow YAML 1.2: `no`, `12:30` and `2024-01-01` are text, `3e-4` is a number, `010` is
ten. As an extension `1_000` is a whole number. `.inf` is text: no key takes it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

MAX_NODES = 10_000  # keys and values, aliases written out
MAX_DEPTH = 40  # the schema needs 5, and Python's recursion limit is far above
KeyPath = tuple[str | int, ...]
REFUSED = ...  # stands in for a value already reported, so that validation adds nothing about it
_TAG = "tag:yaml.org,2002:"
_EXPLICIT = "explicit "  # a tag holds no space, so no file can write one that starts like this


class Place(NamedTuple):
    """What a mistake is blamed on: a line of the file, or an override of the key `path`; sorted by
    `order`.
    """

    order: int
    text: str
    path: KeyPath | None = None


@dataclass(eq=False)
class Mistake(Exception):
    """One line of the final message; raised where reading cannot go on, collected everywhere else."""

    place: Place
    path: KeyPath
    text: str

    def __str__(self) -> str:
        name = "" if not self.path or self.path == self.place.path else f"{dotted(self.path)}: "
        line = f"{self.place.text}: {name}{self.text}"
        # Names and values come from the file; none may break the line, move the cursor or fail to
        # print.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def read(
    text: str, place: Callable[[int], Place]
) -> tuple[Any, dict[KeyPath, Place], list[Mistake]]:
    """The plain value of YAML `text`, the place of each key and list item in it, and the mistakes
    it goes on after.
    """
    reader = None
    try:
        reader = _Reader(text, place)
        node = reader.get_single_node()
        reader.nodes = 0  # so far each anchor counted once; from here on aliases are written out
        return None if node is None else reader.value(node, ()), reader.places, reader.mistakes
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # PyYAML leaks the latter two: "\UFFFFFFFF"
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line if mark else reader.line if reader else text.count("\n", 0, position)
        reason = ", ".join(
            filter(None, (getattr(error, name, "") for name in ("context", "problem", "reason")))
        )
        raise Mistake(place(line + 1), (), f"not valid YAML: {reason or error}") from None


class _Reader(yaml.SafeLoader):
    """Composes YAML nodes and turns them into plain values itself: PyYAML's constructors are never
    called.
    """

    def __init__(self, text: str, place: Callable[[int], Place]) -> None:
        self.place = place
        self.places: dict[KeyPath, Place] = {}
        self.mistakes: list[Mistake] = []
        self.nodes = self.depth = 0
        super().__init__(text)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self.depth += 1
        self.count(event.start_mark, 1, self.depth)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and getattr(event, "tag", None) is not None:
            node.tag = _EXPLICIT + event.tag.replace(_TAG, "!!")
        return node

    def count(self, mark: Any, nodes: int, depth: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:  # a cycle ends here too
            text = f"over {MAX_NODES:,} values or {MAX_DEPTH} levels, aliases written out"
            raise Mistake(self.place(mark.line + 1), (), text)

    def mistake(self, node: yaml.Node, path: KeyPath, text: str) -> Any:
        self.mistakes.append(Mistake(self.place(node.start_mark.line + 1), path, text))
        return REFUSED

    def value(self, node: yaml.Node, path: KeyPath, key: yaml.Node | None = None) -> Any:
        self.places[path] = self.place((key or node).start_mark.line + 1)
        self.count(node.start_mark, 1, len(path))
        if node.tag.startswith(_EXPLICIT):
            return self.mistake(
                node, path, f"tag `{node.tag.removeprefix(_EXPLICIT)}` is not allowed; leave it out"
            )
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return {
            name: self.value(child, (*path, name), key)
            for name, (key, child) in self.entries(node, path).items()
        }

    def entries(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> nodes of key and value; own keys win over those `<<` merges in, earlier merges
        over later ones.
        """
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        self.count(node.start_mark, len(node.value), len(path))
        for key, child in node.value:
            if key.tag == _TAG + "merge":
                for source in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    if isinstance(source, yaml.MappingNode):
                        merged = {**self.entries(source, (*path, "<<")), **merged}
                    else:
                        self.mistake(source, path, "`<<` merges sections only")
            elif key.tag != _TAG + "str" or not key.value.isprintable():
                self.mistake(
                    key, path, "a key must be printable text: put it in quotes, without a tag"
                )
            elif key.value in own:
                self.mistake(
                    key,
                    (*path, key.value),
                    f"already set on line {own[key.value][0].start_mark.line + 1}",
                )
            else:
                own[key.value] = (key, child)
        return {**merged, **own}

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind == "int":
            number = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)) if len(text) < 99 else 2**63
            return (
                number
                if abs(number) < 2**63
                else self.mistake(node, path, f"{short(text)} does not fit 64 bits")
            )
        if kind == "float":
            return float(text)
        if any("\ud800" <= c <= "\udfff" for c in text):
            return self.mistake(node, path, "half of a surrogate pair is not text")
        return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


_Reader.yaml_implicit_resolvers = {}  # instead of YAML 1.1's
for _kind, _first, _pattern in [
    ("bool", "tTfF", r"true|True|TRUE|false|False|FALSE"),
    ("null", ["~", "n", "N", ""], r"~|null|Null|NULL|"),
    ("int", "-+0123456789", r"[-+]?[0-9](_?[0-9])*|0x[0-9a-fA-F]+|0o[0-7]+"),
    ("float", "-+.0123456789", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"),
    ("merge", "<", r"<<"),
]:
    _Reader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))


def dotted(path: KeyPath) -> str:
    """`data.train[0].src`."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{short(part)}" for part in path
    ).removeprefix(".")


def shown(value: object) -> str:
    """A value as a message shows it."""
    return (
        "null"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else short(repr(value))
    )


def short(text: str, limit: int = 60) -> str:
    """Text cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
