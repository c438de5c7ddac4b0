"""Reads a run's YAML file and its `key.sub=value` overrides into a checked `Config`.

Every mistake of the file and the overrides is reported in one `ConfigError`, a line each, with its
line in the file. A whole number may be written `1e4`.
"""

import difflib
import functools
import operator
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mt.config.presets import PRESETS
from mt.config.reader import REFUSED, KeyPath, Mistake, Place, dotted, read, short, shown
from mt.config.schema import FORMAT, HEADER, Config
from mt.errors import ConfigError

MAX_BYTES = 1_000_000  # of a file
FIRST_FORMAT = 1  # of files that mt wrote before they said their format
# By format: the defaults that it gave a new value, as they were before.
DEFAULTS_BEFORE: dict[int, dict[tuple[str, str], Any]] = {
    2: {
        ("tokenizer", "src_normalization"): "nmt_nfkc",
        ("tokenizer", "tgt_normalization"): "nmt_nfkc",
        ("tokenizer", "max_lossy_share"): 1.0,
        ("decode", "max_src_len"): 512,
        ("decode", "max_sentences"): None,
    },
}
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
        raise ConfigError(
            f"{path}:{line}: byte {raw[error.start]:#04x} is not valid UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    return (
        config
        if config.run_dir is not None
        else config.model_copy(update={"run_dir": default_run_dir(path)})
    )


def config_from_text(
    text: str, where: str, overrides: Sequence[str] = (), *, is_saved: bool = False
) -> Config:
    """The configuration that `text` (YAML, called `where` in messages) and the overrides describe.

    A file that mt wrote (`is_saved`) and that says no format is of the first one. What a file of an
    older format leaves out has the default of its time.
    """
    try:
        data, places, mistakes = read(text, lambda line: Place(line, f"{where}:{line}"))
    except Mistake as mistake:
        raise ConfigError(str(mistake)) from None
    data = {} if data is None else data  # an empty file: all defaults
    if not isinstance(data, dict):
        raise ConfigError(f"{where}:1: expected `key: value` lines, found {shown(data)}")
    for number, override in enumerate(overrides):
        mistakes += _override(data, places, override, MAX_BYTES + number)
    if is_saved or text.startswith(HEADER):
        data.setdefault("format", FIRST_FORMAT)
    else:
        mistakes += _expand_paths(data, places, where)
    for (section, key), value in _older_defaults(data.get("format", FORMAT)):
        if isinstance(data.setdefault(section, {}), dict):
            data[section].setdefault(key, value)
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        data["model"] = {**PRESETS.get(model["preset"], {}), **model}
    config, errors = _validate(data)
    mistakes += [
        _translate(error, places, where) for error in errors if error["input"] is not REFUSED
    ]
    if config is None or mistakes:
        raise ConfigError(
            "\n".join(
                dict.fromkeys(str(each) for each in sorted(mistakes, key=lambda m: m.place.order))
            )
        )
    return config


def expanded(path: str) -> str:
    """A path with `~` and environment variables in it replaced, unless there is a file of just this
    name.

    `~` stays if no home folder is known. Raises `ValueError` for a variable that is not set.
    """
    if os.path.exists(path):
        return path
    result = os.path.expandvars(os.path.expanduser(path))
    if unset := re.search(r"\$([A-Za-z_]\w*|\{[^}]*\})", result):
        raise ValueError(f"the environment has no variable {unset[0]}")
    return result


def _expand_paths(data: dict[str, Any], places: dict[KeyPath, Place], where: str) -> list[Mistake]:
    """Replace what `expanded` does in every path of a file; what mt has written holds them
    replaced.
    """
    mistakes: list[Mistake] = []

    def expand(section: Any, at: KeyPath, keys: Sequence[str]) -> None:
        for key in keys:
            if not isinstance(section, dict) or not isinstance(section.get(key), str):
                continue
            try:
                section[key] = expanded(section[key])
            except ValueError as error:
                mistakes.append(
                    Mistake(_blame((*at, key), at, "", places, where), (*at, key), str(error))
                )

    expand(
        data, (), ("run_dir",)
    )  # cache_dir is replaced when it is used: its default is under `~`
    expand(data.get("tokenizer"), ("tokenizer",), ("src_model", "tgt_model"))
    expand(data.get("train"), ("train",), ("init_from",))
    text = data.get("data")
    for split in ("train", "valid", "test"):
        corpora = text.get(split) if isinstance(text, dict) else None
        for number, corpus in enumerate(corpora if isinstance(corpora, list) else []):
            expand(corpus, ("data", split, number), ("src", "tgt", "dataset"))
    return mistakes


def with_defaults_of(config: Config, format: int) -> Config:
    """`config` with the defaults of a format in place of today's, for what its file left out."""
    for (section, key), value in _older_defaults(format):
        part = getattr(config, section)
        if key not in part.model_fields_set:
            config = config.model_copy(update={section: part.model_copy(update={key: value})})
    return config.model_copy(update={"format": format})


def _older_defaults(format: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """What the defaults of a format were, as far as they are others today; the oldest value of each
    first.
    """
    for number in range(format + 1 if isinstance(format, int) else FORMAT + 1, FORMAT + 1):
        yield from DEFAULTS_BEFORE[number].items()


def default_run_dir(path: str | Path) -> str:
    """Where a run of this YAML file goes unless it says otherwise; relative to the working
    directory.
    """
    return f"runs/{Path(path).stem}"


def _override(
    data: dict[str, Any], places: dict[KeyPath, Place], override: str, order: int
) -> list[Mistake]:
    """Set in `data` what `override` says, and blame it for these keys from now on."""
    key, equals, text = override.partition("=")
    parts = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    path = tuple(int(part) if re.fullmatch(r"[0-9]{1,99}", part) else part for part in parts)
    place = Place(order, f"override `{short(override)}`", path)
    if not equals or not all(parts) or not key.isprintable():
        return [Mistake(place, path, "expected key=value, such as optim.lr=3e-4")]
    try:
        value, _, mistakes = read(text, lambda line: place)
        data.update(_put(data, path, value))
    except (Mistake, LookupError) as error:
        return [Mistake(place, path, error.text if isinstance(error, Mistake) else str(error))]
    for inner in [at for at in places if at[: len(path)] == path]:
        del places[inner]
    places[path] = place
    return [Mistake(place, (*path, *mistake.path), mistake.text) for mistake in mistakes]


def _put(node: Any, path: KeyPath, value: Any) -> Any:
    """A copy of `node` with `path` set: sections are made as needed, list items must be there (else
    LookupError).
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return [*node[:key], _put(node[key], rest, value), *node[key + 1 :]]
    if isinstance(key, int) or not isinstance(node, dict | None):
        raise LookupError(
            "no such list item in the file"
            if isinstance(key, int)
            else f"{shown(node)} has no keys"
        )
    return {**(node or {}), key: _put((node or {}).get(key), rest, value)}


def _validate(data: dict[str, Any]) -> tuple[Config | None, Sequence[Mapping[str, Any]]]:
    """The checked configuration or pydantic's errors; whole floats in places of ints become ints on
    the way.
    """
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
    "int_type": "expected a whole number",
    "float_type": "expected a number",
    "string_type": "expected text",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "model_type": "expected a section of `key: value` lines",
    "literal_error": "expected one of {options}",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "expected at least {min_length} items",
    "too_long": "expected at most {max_length} items",
    "string_pattern_mismatch": "expected text that matches {pattern}",
}


def _translate(error: Mapping[str, Any], places: dict[KeyPath, Place], where: str) -> Mistake:
    """Pydantic's error in our words, with its place."""
    kind, path, value = error["type"], error["loc"], error["input"]
    context = {
        key: int(limit) if _is_whole(limit) else limit
        for key, limit in error.get("ctx", {}).items()
    }
    if kind == "value_error":
        message = str(context["error"])
        key, _, rest = message.partition(": ")
        at = (*path, *key.split(".")) if rest and re.fullmatch(r"[a-z_.]+", key) else path
        return Mistake(
            _blame(at, path, message, places, where), at, message if at == path else rest
        )
    if kind == "extra_forbidden":
        text = f"unknown key{_hint(_right_keys(path))}"
    else:
        options = re.findall(r"'([^']*)'", str(context.get("expected")))
        quotes = (
            " (put it in quotes)"
            if kind == "string_type" and isinstance(value, int | float)
            else ""
        )
        context["options"] = ", ".join(options)
        words = _EXPECTED[kind].format_map(context) if kind in _EXPECTED else error["msg"].lower()
        text = f"{words}, found {shown(value)}{quotes}{_hint(_close(str(value), options))}"
    return Mistake(_blame(path, path, "", places, where), path, text)


def _blame(
    path: KeyPath, base: KeyPath, message: str, places: dict[KeyPath, Place], where: str
) -> Place:
    """Where a mistake at `path` comes from, in this order: an override of it, an override of a key
    that `message` names (in the section `base`), its own line, the line of a key named, the nearest
    section's, an override inside.
    """
    if path in places and not message:
        return places[path]
    words = set(re.findall(r"[a-z_.]+", message))
    below = {
        at: place for at, place in places.items() if at[: len(base)] == base and len(at) > len(base)
    }
    exact = [places[path]] if path in places else []
    named = sorted(
        (place for at, place in below.items() if dotted(at[len(base) :]) in words), reverse=True
    )
    overrides = [place for place in exact + named if place.path is not None]
    around = [places[path[:end]] for end in range(len(path) - 1, 0, -1) if path[:end] in places]
    inside = [max(below.values())] if base and below else []
    return [*overrides, *exact, *named, *around, *inside, Place(0, where)][0]


def _right_keys(path: KeyPath) -> list[str]:
    """What the unknown key at `path` may have meant: a longer name here, the same name elsewhere, a
    similar one.
    """
    word, sections = str(path[-1]), _sections(Config)
    here = sections[tuple(0 if isinstance(part, int) else part for part in path[:-1])]
    elsewhere = {dotted((*at, key)): key for at, keys in sections.items() for key in keys}
    same = [name for name, key in elsewhere.items() if key == word]
    alike = _close(word, list(elsewhere.values()))
    similar = [key for key in alike if key in here] or [
        name for name, key in elsewhere.items() if key in alike
    ]
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
