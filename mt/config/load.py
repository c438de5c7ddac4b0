"""Reads a run's YAML file and its `key.sub=value` overrides into a checked `Config`.

Unusual here:
* Every mistake of the file and the overrides is reported in one `ConfigError`, a line each, with its line in the file.
* Plain scalars follow YAML 1.2: `no`, `12:30` and `2024-01-01` are text, `3e-4` is a number, `010` is ten. As an
  extension `1_000` is a whole number, and so is `1e4` where one is expected. `.inf` is text: no key takes it.
* A file may come from a stranger: tags, cycles, deep nesting and exploding aliases are refused before they cost much.
"""

import difflib
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from mt.config.presets import PRESETS
from mt.config.schema import Config
from mt.errors import ConfigError

MAX_BYTES = 1_000_000  # of a file
MAX_NODES = 10_000  # keys and values, aliases written out
MAX_DEPTH = 40  # the schema needs 5, and Python's recursion limit is far above
KeyPath = tuple[str | int, ...]
_TAG = "tag:yaml.org,2002:"
_EXPLICIT = "explicit "  # a tag holds no space, so no file can write one that starts like this
_REFUSED = ...  # stands in for a value already reported, so that validation adds nothing about it
_close = functools.partial(difflib.get_close_matches, n=1, cutoff=0.6)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file `path`, apply the overrides, and name the run's folder if they do not."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: over {MAX_BYTES:,} bytes, too long for a configuration")
        config = config_from_text(raw.decode("utf-8"), str(path), overrides)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte {raw[error.start]:#04x} is not valid UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return config if config.run_dir is not None else config.model_copy(update={"run_dir": default_run_dir(path)})


def config_from_text(text: str, where: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that `text` (YAML, called `where` in messages) and the overrides describe."""
    try:
        data, places, mistakes = _read(text, lambda line: _Place(line, f"{where}:{line}"))
    except _Mistake as mistake:
        raise ConfigError(str(mistake)) from None
    data = {} if data is None else data  # an empty file: all defaults
    if not isinstance(data, dict):
        raise ConfigError(f"{where}:1: expected `key: value` lines, found {_shown(data)}")
    for number, override in enumerate(overrides):
        mistakes += _override(data, places, override, MAX_BYTES + number)
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        data["model"] = {**PRESETS.get(model["preset"], {}), **model}
    config, errors = _validate(data)
    mistakes += [_translate(error, places, where) for error in errors if error["input"] is not _REFUSED]
    if config is None or mistakes:
        raise ConfigError("\n".join(dict.fromkeys(str(each) for each in sorted(mistakes, key=lambda m: m.place.order))))
    return config


def default_run_dir(path: str | Path) -> str:
    """Where a run of this YAML file goes unless it says otherwise; relative to the working directory."""
    return f"runs/{Path(path).stem}"


class _Place(NamedTuple):
    """What a mistake is blamed on: a line of the file, or an override of the key `path`; sorted by `order`."""
    order: int
    text: str
    path: KeyPath | None = None


@dataclass(eq=False)
class _Mistake(Exception):
    """One line of the final message; raised where reading cannot go on, collected everywhere else."""
    place: _Place
    path: KeyPath
    text: str

    def __str__(self) -> str:
        name = "" if not self.path or self.path == self.place.path else f"{_dotted(self.path)}: "
        line = f"{self.place.text}: {name}{self.text}"
        # Names and values come from the file; none may break the line, move the cursor or fail to print.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _read(text: str, place: Callable[[int], _Place]) -> tuple[Any, dict[KeyPath, _Place], list[_Mistake]]:
    """The plain value of YAML `text`, the place of each key and list item in it, and the mistakes it goes on after."""
    reader = None
    try:
        reader = _Reader(text, place)
        node = reader.get_single_node()
        reader.nodes = 0  # so far each anchor counted once; from here on aliases are written out
        return None if node is None else reader.value(node, ()), reader.places, reader.mistakes
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # PyYAML leaks the latter two: "\UFFFFFFFF"
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line if mark else reader.line if reader else text.count("\n", 0, position)
        reason = ", ".join(filter(None, (getattr(error, name, "") for name in ("context", "problem", "reason"))))
        raise _Mistake(place(line + 1), (), f"not valid YAML: {reason or error}") from None


class _Reader(yaml.SafeLoader):
    """Composes YAML nodes and turns them into plain values itself: PyYAML's constructors are never called."""

    def __init__(self, text: str, place: Callable[[int], _Place]) -> None:
        self.place = place
        self.places: dict[KeyPath, _Place] = {}
        self.mistakes: list[_Mistake] = []
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
            raise _Mistake(self.place(mark.line + 1), (), text)

    def mistake(self, node: yaml.Node, path: KeyPath, text: str) -> Any:
        self.mistakes.append(_Mistake(self.place(node.start_mark.line + 1), path, text))
        return _REFUSED

    def value(self, node: yaml.Node, path: KeyPath, key: yaml.Node | None = None) -> Any:
        self.places[path] = self.place((key or node).start_mark.line + 1)
        self.count(node.start_mark, 1, len(path))
        if node.tag.startswith(_EXPLICIT):
            return self.mistake(node, path, f"tag `{node.tag.removeprefix(_EXPLICIT)}` is not allowed; leave it out")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        return {name: self.value(child, (*path, name), key) for name, (key, child) in self.entries(node, path).items()}

    def entries(self, node: yaml.Node, path: KeyPath) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> nodes of key and value; own keys win over those `<<` merges in, earlier merges over later ones."""
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
                self.mistake(key, path, "a key must be printable text: put it in quotes, without a tag")
            elif key.value in own:
                self.mistake(key, (*path, key.value), f"already set on line {own[key.value][0].start_mark.line + 1}")
            else:
                own[key.value] = (key, child)
        return {**merged, **own}

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        if kind == "int":
            number = int(text, {"0x": 16, "0o": 8}.get(text[:2], 10)) if len(text) < 99 else 2**63
            return number if abs(number) < 2**63 else self.mistake(node, path, f"{_short(text)} does not fit 64 bits")
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


def _override(data: dict[str, Any], places: dict[KeyPath, _Place], override: str, order: int) -> list[_Mistake]:
    """Set in `data` what `override` says, and blame it for these keys from now on."""
    key, equals, text = override.partition("=")
    parts = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    path = tuple(int(part) if re.fullmatch(r"[0-9]{1,99}", part) else part for part in parts)
    place = _Place(order, f"override `{_short(override)}`", path)
    if not equals or not all(parts) or not key.isprintable():
        return [_Mistake(place, path, "expected key=value, such as optim.lr=3e-4")]
    try:
        value, _, mistakes = _read(text, lambda line: place)
        data.update(_put(data, path, value))
    except (_Mistake, LookupError) as error:
        return [_Mistake(place, path, error.text if isinstance(error, _Mistake) else str(error))]
    for inner in [at for at in places if at[: len(path)] == path]:
        del places[inner]
    places[path] = place
    return [_Mistake(place, (*path, *mistake.path), mistake.text) for mistake in mistakes]


def _put(node: Any, path: KeyPath, value: Any) -> Any:
    """A copy of `node` with `path` set: sections are made as needed, list items must be there (else LookupError)."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return [*node[:key], _put(node[key], rest, value), *node[key + 1 :]]
    if isinstance(key, int) or not isinstance(node, dict | None):
        raise LookupError("no such list item in the file" if isinstance(key, int) else f"{_shown(node)} has no keys")
    return {**(node or {}), key: _put((node or {}).get(key), rest, value)}


def _validate(data: dict[str, Any]) -> tuple[Config | None, Sequence[Mapping[str, Any]]]:
    """The checked configuration or pydantic's errors; whole floats in places of ints become ints on the way."""
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    whole = [error for error in errors if error["type"] == "int_type" and _is_whole(error["input"])]
    for found in whole:
        *above, key = found["loc"]
        functools.reduce(operator.getitem, above, data)[key] = int(found["input"])  # type: ignore[arg-type, index]
    return _validate(data) if whole else (None, errors)


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**63


_EXPECTED = {  # pydantic's error type -> our words
    "int_type": "expected a whole number", "float_type": "expected a number", "string_type": "expected text",
    "finite_number": "expected a finite number", "bool_type": "expected true or false", "list_type": "expected a list",
    "model_type": "expected a section of `key: value` lines", "literal_error": "expected one of {options}",
    "greater_than": "must be above {gt}", "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}", "less_than_equal": "must be at most {le}",
    "too_short": "expected at least {min_length} items", "too_long": "expected at most {max_length} items",
    "string_pattern_mismatch": "expected text that matches {pattern}",
}


def _translate(error: Mapping[str, Any], places: dict[KeyPath, _Place], where: str) -> _Mistake:
    """Pydantic's error in our words, with its place."""
    kind, path, value = error["type"], error["loc"], error["input"]
    context = {key: int(limit) if _is_whole(limit) else limit for key, limit in error.get("ctx", {}).items()}
    if kind == "value_error":
        message = str(context["error"])
        key, _, rest = message.partition(": ")
        at = (*path, *key.split(".")) if rest and re.fullmatch(r"[a-z_.]+", key) else path
        return _Mistake(_blame(at, path, message, places, where), at, message if at == path else rest)
    if kind == "extra_forbidden":
        text = f"unknown key{_hint(_right_keys(path))}"
    else:
        options = re.findall(r"'([^']*)'", str(context.get("expected")))
        quotes = " (put it in quotes)" if kind == "string_type" and isinstance(value, int | float) else ""
        context["options"] = ", ".join(options)
        words = _EXPECTED[kind].format_map(context) if kind in _EXPECTED else error["msg"].lower()
        text = f"{words}, found {_shown(value)}{quotes}{_hint(_close(str(value), options))}"
    return _Mistake(_blame(path, path, "", places, where), path, text)


def _blame(path: KeyPath, base: KeyPath, message: str, places: dict[KeyPath, _Place], where: str) -> _Place:
    """Where a mistake at `path` comes from, in this order: an override of it, an override of a key that `message`
    names (in the section `base`), its own line, the line of a key named, the nearest section's, an override inside."""
    if path in places and not message:
        return places[path]
    words = set(re.findall(r"[a-z_.]+", message))
    below = {at: place for at, place in places.items() if at[: len(base)] == base and len(at) > len(base)}
    exact = [places[path]] if path in places else []
    named = sorted((place for at, place in below.items() if _dotted(at[len(base) :]) in words), reverse=True)
    overrides = [place for place in exact + named if place.path is not None]
    around = [places[path[:end]] for end in range(len(path) - 1, 0, -1) if path[:end] in places]
    inside = [max(below.values())] if base and below else []
    return [*overrides, *exact, *named, *around, *inside, _Place(0, where)][0]


def _right_keys(path: KeyPath) -> list[str]:
    """What the unknown key at `path` may have meant: a longer name here, the same name elsewhere, a similar one."""
    word, sections = str(path[-1]), _sections(Config)
    here = sections[tuple(0 if isinstance(part, int) else part for part in path[:-1])]
    elsewhere = {_dotted((*at, key)): key for at, keys in sections.items() for key in keys}
    same = [name for name, key in elsewhere.items() if key == word]
    alike = _close(word, list(elsewhere.values()))
    similar = [key for key in alike if key in here] or [name for name, key in elsewhere.items() if key in alike]
    longer = [key for key in here if len(word) > 2 and key.startswith(word)]
    return longer[:1] or same[:2] or similar[:2]


@functools.cache
def _sections(model: type[BaseModel], path: KeyPath = ()) -> dict[KeyPath, list[str]]:
    """The keys of each section; item 0 stands for all of a list."""
    found = {path: list(model.model_fields)}
    for key, field in model.model_fields.items():
        items = get_args(field.annotation)
        for kind in items or (field.annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found |= _sections(kind, (*path, key, 0) if items else (*path, key))
    return found


def _hint(names: list[str]) -> str:
    return f" (did you mean {' or '.join(f'`{name}`' for name in names)}?)" if names else ""


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in path).removeprefix(".")


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else _short(repr(value))


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
