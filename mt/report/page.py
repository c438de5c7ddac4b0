"""The page of a report: one HTML file that needs nothing beside it, neither network nor server.

What is unusual: the data is JSON inside the page, read by the page's own script, and reaches what
is shown only as text. Three things keep a hostile sentence a sentence: the escapes of `_as_json`,
the script's text nodes, and a Content-Security-Policy that loads nothing.
"""

import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

SCRIPTS = (
    "elements.js",
    "numbers.js",
    "curves.js",
    "buckets.js",
    "sentences.js",
    "attention.js",
    "page.js",
)  # one module, in this order


def render(data: Mapping[str, Any]) -> str:
    """The whole page as text, to be written as UTF-8.

    Every part of `data` may be missing or empty; the page then says what is missing. Numbers that
    are not finite count as missing.

    - `title`, `generated` (when, as text), `version` (of mt)
    - `runs`: `name` (no two alike), `path`, `state`, `best_step`, `provenance` {label: value},
      `curves` {`train`: {`step`, `loss`, `lr`, `tokens_per_second`}, `valid`: {`step`, `loss`,
      `bleu`, `chrf`}}, each a list of numbers, steps rising
    - `config_differences`: `key`, `values` (one a run, None where it has no such key)
    - `tests`: `name`, `num_sentences`, `precision` (of the models that translated) and
      - `systems`: `name` (that of its run, where it has one, shares its colour), `length_ratio`,
        `scores` [`name`, `value`, `interval` (low, high) or None, `signature`], `diagnosis`
        [`label`, `count`, `flag`]
      - `comparisons` of system number `b` with system number `a`: `wins`, `losses`, `ties`
        (sentences in which b is better, worse, alike), `verdict` (a sentence), `metrics`: `metric`,
        `difference` (b minus a), `p_values` {test: p, or None where there is no difference}
      - `buckets`: `title`, `labels`, `counts` (sentences a bucket), `metric`, `values`
        [systems][buckets], None where a bucket is empty
      - `sentences`: `src`, `ref`, and `hyps`, `scores` (chrF), `flags` (lists of names from
        `diagnosis`), the latter [systems][sentences]
      - `attention`: `sentence` (counted from 0), `system`, `src_tokens`, `read_tokens` (what the
        decoder reads), `written_tokens` (what it writes after each of them), and `encoder`,
        `decoder`, `cross`, each with `shape` [layers, heads, queries, keys] and `data`, the weights
        times 255 as bytes in base64
    """
    parts = {
        "title": html.escape(_encodable(str(data.get("title") or "Translation report"))),
        "css": _asset("page.css"),
        "js": "\n".join(_asset(name) for name in SCRIPTS),
        "data": _as_json(data),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return resources.files("mt.report").joinpath(name).read_text(encoding="utf-8")


def _as_json(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element: nothing in it can end that element, or fails to be
    written as UTF-8.
    """
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    """None for what is not finite: JSON has no word for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
