"""Read a YAML file and `key.sub=value` overrides into a validated `Config`.

A single `ConfigError` reports all mistakes: one line each, with the line in the file or the
override. Whole numbers may be written as `1e4`.
"""

import difflib
import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mt.config.presets import PRESETS
from mt.config.reader import REFUSED, KeyPath, Mistake, Place, dotted, format_value, read, shorten
from mt.config.schema import HEADER, Config
from mt.errors import ConfigError

MAX_BYTES = 1_000_000  # maximum size of a configuration file
FIRST_FORMAT = 1  # version of files written by mt that have no `format`
# For each format, the defaults it changed, as {(section, key): the earlier default}.
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
    """Read the YAML file `path` and apply the overrides. Also fills in the default `run_dir`."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise ConfigError(f"{path}: a configuration can have at most {MAX_BYTES:,} bytes")
        config = config_from_text(raw.decode(), str(path), overrides)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte {raw[error.start]:#04x} is not valid UTF-8"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if config.run_dir is not None:
        return config
    return config.model_copy(update={"run_dir": default_run_dir(path)})


def config_from_text(
    text: str, file_name: str, overrides: Sequence[str] = (), *, is_saved: bool = False
) -> Config:
    """Return the configuration that YAML `text` and the overrides describe.

    Messages call the text `file_name`. `is_saved` means that mt wrote the text; if it then has no
    `format` key, it has the first format. If the text has an older format, missing keys get the
    defaults of that format.
    """
    try:
        data, places, mistakes = read(text, lambda line: Place(line, f"{file_name}:{line}"))
    except Mistake as mistake:
        raise ConfigError(str(mistake)) from None
    data = {} if data is None else data  # an empty file means all defaults
    if not isinstance(data, dict):
        raise ConfigError(f"{file_name}:1: expected `key: value` lines, found {format_value(data)}")
    for number, override in enumerate(overrides):
        mistakes += _apply_override(data, places, override, MAX_BYTES + number)
    if is_saved or text.startswith(HEADER):
        data.setdefault("format", FIRST_FORMAT)
    else:
        mistakes += _expand_paths(data, places, file_name)
    for (section, key), value in _older_defaults(data.get("format")):
        if isinstance(data.setdefault(section, {}), dict):
            data[section].setdefault(key, value)
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("preset"), str):
        data["model"] = {**PRESETS.get(model["preset"], {}), **model}
    config, errors = _validate(data)
    mistakes += [
        _mistake_of(error, places, file_name) for error in errors if error["input"] is not REFUSED
    ]
    if config is None or mistakes:
        mistakes.sort(key=lambda mistake: mistake.place.order)
        raise ConfigError("\n".join(dict.fromkeys(map(str, mistakes))))
    return config


def expand_path(path: str) -> str:
    """Replace `~` and environment variables in a path, unless a file with exactly this name exists.

    If the home folder is unknown, `~` stays. Raises `ValueError` if a variable is not set.
    """
    if os.path.exists(path):
        return path
    result = os.path.expandvars(os.path.expanduser(path))
    if unset := re.search(r"\$([A-Za-z_]\w*|\{[^}]*\})", result):
        raise ValueError(f"the environment variable {unset[0]} is not set")
    return result


def _expand_paths(
    data: dict[str, Any], places: dict[KeyPath, Place], file_name: str
) -> list[Mistake]:
    """Apply `expand_path` to every path in `data`, in place, and return the mistakes.

    `cache_dir` is left out: it is expanded when it is used, because its default starts with `~`.
    """
    mistakes: list[Mistake] = []

    def expand(section: Any, path: KeyPath, keys: Sequence[str]) -> None:
        for key in keys:
            if not isinstance(section, dict) or not isinstance(section.get(key), str):
                continue
            try:
                section[key] = expand_path(section[key])
            except ValueError as error:
                place = _find_place((*path, key), path, "", places, file_name)
                mistakes.append(Mistake(place, (*path, key), str(error)))

    expand(data, (), ("run_dir",))
    expand(data.get("tokenizer"), ("tokenizer",), ("src_model", "tgt_model"))
    expand(data.get("train"), ("train",), ("init_from",))
    section = data.get("data")
    for split in ("train", "valid", "test"):
        corpora = section.get(split) if isinstance(section, dict) else None
        for number, corpus in enumerate(corpora if isinstance(corpora, list) else []):
            expand(corpus, ("data", split, number), ("src", "tgt", "dataset"))
    return mistakes


def with_defaults_of(config: Config, format: int) -> Config:
    """Return `config` with the defaults of an older `format` for all keys missing in its file."""
    for (section, key), value in _older_defaults(format):
        part = getattr(config, section)
        if key not in part.model_fields_set:
            config = config.model_copy(update={section: part.model_copy(update={key: value})})
    return config.model_copy(update={"format": format})


def _older_defaults(format: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield the defaults of `format` that have changed since then, as ((section, key), value).

    If a default has changed several times, the first value that is yielded for it is the one of
    `format`.
    """
    for version, defaults in DEFAULTS_BEFORE.items():
        if isinstance(format, int) and format < version:
            yield from defaults.items()


def default_run_dir(path: str | Path) -> str:
    """Return the default run folder for a YAML file, relative to the working directory."""
    return f"runs/{Path(path).stem}"


def _apply_override(
    data: dict[str, Any], places: dict[KeyPath, Place], override: str, order: int
) -> list[Mistake]:
    """Apply `override` to `data`, record it as the place of its key, and return the mistakes."""
    key, equals, text = override.partition("=")
    parts = re.sub(r"\[([0-9]+)\]", r".\1", key).split(".")
    path = tuple(int(part) if re.fullmatch(r"[0-9]{1,99}", part) else part for part in parts)
    place = Place(order, f"override `{shorten(override)}`", path)
    if not equals or not all(parts) or not key.isprintable():
        return [Mistake(place, path, "expected key=value, such as optim.lr=3e-4")]
    try:
        value, _, mistakes = read(text, lambda line: place)
        data.update(_with_value(data, path, value))
    except (Mistake, LookupError) as error:
        return [Mistake(place, path, error.text if isinstance(error, Mistake) else str(error))]
    for inner in [key_path for key_path in places if key_path[: len(path)] == path]:
        del places[inner]
    places[path] = place
    return [Mistake(place, (*path, *mistake.path), mistake.text) for mistake in mistakes]


def _with_value(node: Any, path: KeyPath, value: Any) -> Any:
    """Return a copy of `node` with `value` at `path`, creating missing sections.

    Raises `LookupError` if `path` leads through a missing list item or a value without keys.
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return [*node[:key], _with_value(node[key], rest, value), *node[key + 1 :]]
    if isinstance(key, int):
        raise LookupError("no such list item in the file")
    if not isinstance(node, dict | None):
        raise LookupError(f"{format_value(node)} has no keys")
    node = node or {}
    return {**node, key: _with_value(node.get(key), rest, value)}


def _validate(data: dict[str, Any]) -> tuple[Config | None, Sequence[Mapping[str, Any]]]:
    """Return (validated configuration, []), or (None, pydantic's errors).

    A whole float such as 1e4 is accepted if the option needs an int.
    """
    try:
        return Config.model_validate(data), []
    except ValidationError as error:
        errors = error.errors(include_url=False)
    whole = [error for error in errors if error["type"] == "int_type" and _is_whole(error["input"])]
    for mismatch in whole:
        data = _with_value(data, mismatch["loc"], int(mismatch["input"]))
    return _validate(data) if whole else (None, errors)


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer() and abs(value) < 2**63


# Maps pydantic's error types to our messages.
_EXPECTED = {
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
    "too_short": "expected {min_length} or more items",
    "too_long": "expected at most {max_length} items",
    "string_pattern_mismatch": "expected text that matches {pattern}",
}


def _mistake_of(error: Mapping[str, Any], places: dict[KeyPath, Place], file_name: str) -> Mistake:
    """Turn one of pydantic's errors into a `Mistake` with a plain message and a place."""
    kind, path, value = error["type"], error["loc"], error["input"]
    context = {
        key: int(limit) if _is_whole(limit) else limit
        for key, limit in error.get("ctx", {}).items()
    }
    if kind == "value_error":
        message = str(context["error"])
        key, _, rest = message.partition(": ")
        names_key = rest and re.fullmatch(r"[a-z_.]+", key)
        key_path, text = ((*path, *key.split(".")), rest) if names_key else (path, message)
        return Mistake(_find_place(key_path, path, message, places, file_name), key_path, text)
    if kind == "extra_forbidden":
        text = f"unknown key{_hint(_suggestions(path))}"
    else:
        options = re.findall(r"'([^']*)'", str(context.get("expected")))
        context["options"] = ", ".join(options)
        expected = (
            _EXPECTED[kind].format_map(context) if kind in _EXPECTED else error["msg"].lower()
        )
        is_number = kind == "string_type" and isinstance(value, int | float)
        quotes = " (put it in quotes)" if is_number else ""
        text = (
            f"{expected}, found {format_value(value)}{quotes}{_hint(_close(str(value), options))}"
        )
    return Mistake(_find_place(path, path, "", places, file_name), path, text)


def _find_place(
    path: KeyPath, section: KeyPath, message: str, places: dict[KeyPath, Place], file_name: str
) -> Place:
    """Return the line or override to report for a mistake at `path`.

    The cause may be `path` itself or a key of `section` that `message` mentions. If both a line
    and an override are possible, the override is reported, because the file alone may be correct.
    """
    named = set(re.findall(r"[a-z_.]+", message))
    inside = {key[len(section) :]: places[key] for key in places if key[: len(section)] == section}
    causes = sorted((inside[key] for key in inside if dotted(key) in named), reverse=True)
    if path in places:
        causes.insert(0, places[path])
    for cause in causes:
        if cause.path is not None:
            return cause
    if causes:
        return causes[0]
    for length in range(len(path) - 1, 0, -1):  # from the innermost enclosing section outwards
        if path[:length] in places:
            return places[path[:length]]
    return max(inside.values()) if section and inside else Place(0, file_name)


def _suggestions(path: KeyPath) -> list[str]:
    """Return up to two keys that the user may have meant by the unknown key at `path`.

    The candidates are, in this order: keys of this section that start with the unknown key, the
    same key in other sections, and similar keys, in this section if possible.
    """
    word, sections = str(path[-1]), _sections(Config)
    siblings = sections[tuple(0 if isinstance(part, int) else part for part in path[:-1])]
    by_name = {dotted((*at, key)): key for at, keys in sections.items() for key in keys}
    longer = [key for key in siblings if len(word) > 2 and key.startswith(word)]
    same = [name for name, key in by_name.items() if key == word]
    alike = _close(word, list(by_name.values()))
    similar = [key for key in alike if key in siblings] or [
        name for name, key in by_name.items() if key in alike
    ]
    return longer[:1] or same[:2] or similar[:2]


@functools.cache
def _sections(model: type[BaseModel], path: KeyPath = ()) -> dict[KeyPath, list[str]]:
    """Map the path of each section to its keys. In a path, index 0 stands for any list item."""
    keys = {path: list(model.model_fields)}
    for key, field in model.model_fields.items():
        items = get_args(field.annotation)
        for kind in items or (field.annotation,):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys |= _sections(kind, (*path, key, 0) if items else (*path, key))
    return keys


def _hint(names: list[str]) -> str:
    return f" (did you mean {' or '.join(f'`{name}`' for name in names)}?)" if names else ""
