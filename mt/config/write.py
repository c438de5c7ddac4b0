"""Write a `Config` as YAML or as a flat dict, and its JSON Schema for editors."""

import re
from collections.abc import Collection
from typing import Any

import yaml

from mt.config.presets import PRESETS
from mt.config.schema import Config
from mt.config.schema.model import ModelConfig


def to_yaml(config: Config, full: bool = True, without: Collection[str] = ()) -> str:
    """Return `config` as YAML text, from which the same configuration can be read.

    With `full`, it contains every key; otherwise, only the keys whose values differ from the
    defaults and the preset. The top-level keys in `without` are omitted.
    """
    values = config.model_dump() if full else _differences(config)
    values = {key: value for key, value in values.items() if key not in without}
    return yaml.dump(
        values,
        Dumper=_Writer,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=10**9,
    )


def flatten(config: Config) -> dict[str, object]:
    """Map dotted keys, such as `optim.lr` or `data.train[0].src`, to values.

    A list of sections is split into its items; any other list is one value.
    """
    flat: dict[str, object] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, f"{name}.{key}" if name else key)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                visit(item, f"{name}[{index}]")
        else:
            flat[name] = value

    visit(config.model_dump(), "")
    return flat


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema that editors use to complete and check configuration files."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
        "title": "mt configuration",
    }


def _differences(config: Config) -> dict[str, Any]:
    """Return the values that a file must contain so that reading it gives `config`.

    A model option is included if it differs from its preset, even if it has the default value.
    """
    values = config.model_dump(exclude_defaults=True)
    given = {**ModelConfig().model_dump(), **PRESETS.get(config.model.preset or "", {})}
    values["model"] = {
        key: value for key, value in config.model.model_dump().items() if value != given[key]
    }
    return {key: value for key, value in values.items() if value != {}}


class _Writer(yaml.SafeDumper):
    """Writes YAML that every parser reads alike.

    Text is quoted if a YAML 1.1 or 1.2 parser could read it as another type. Lists of plain values
    are written on one line.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Starts with a letter, so it cannot be a number or a date, and has no character special to YAML.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# The booleans of YAML 1.1, and null.
_RESERVED = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _write_text(writer: yaml.SafeDumper, text: str) -> yaml.Node:
    is_plain = _PLAIN.fullmatch(text) and text.lower() not in _RESERVED
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


def _write_list(writer: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    is_plain = not any(isinstance(item, dict) for item in items)
    return writer.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_plain)


_Writer.add_representer(str, _write_text)
_Writer.add_representer(list, _write_list)
