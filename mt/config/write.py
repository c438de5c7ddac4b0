"""A `Config` written back out: as YAML that reads back equal, as flat keys, and the JSON Schema of
its files.
"""

import re
from collections.abc import Collection
from typing import Any

import yaml

from mt.config.presets import PRESETS
from mt.config.schema import Config
from mt.config.schema.model import ModelConfig


def to_yaml(config: Config, full: bool = True, without: Collection[str] = ()) -> str:
    """`config` as YAML that reads back equal: every key, or (not `full`) what defaults and the
    preset do not give.

    Sections of `without` are left out.
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
    """Dotted key -> value, such as `optim.lr` or `data.train[0].src`; a list of numbers is one
    value.
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
    """The JSON Schema of a YAML file, with which editors complete and check it."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "mt configuration",
    }


def _differences(config: Config) -> dict[str, Any]:
    """What a file must say to give `config`; a key set back to its default beside a preset is a
    difference too.
    """
    values = config.model_dump(exclude_defaults=True)
    given = {**ModelConfig().model_dump(), **PRESETS.get(config.model.preset or "", {})}
    values["model"] = {
        key: value for key, value in config.model.model_dump().items() if value != given[key]
    }
    return {key: value for key, value in values.items() if value != {}}


class _Writer(yaml.SafeDumper):
    """Quotes text that any YAML, 1.1 or 1.2, could take for something else; lists of numbers stay
    on one line.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


# Letters first, so never a number or a date; the rest is harmless in every context.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS = {
    "y",
    "n",
    "yes",
    "no",
    "on",
    "off",
    "true",
    "false",
    "null",
}  # YAML 1.1's booleans, and null


def _write_text(writer: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _write_list(writer: yaml.SafeDumper, items: list[Any]) -> yaml.Node:
    in_a_line = not any(isinstance(item, dict) for item in items)
    return writer.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=in_a_line)


_Writer.add_representer(str, _write_text)
_Writer.add_representer(list, _write_list)
