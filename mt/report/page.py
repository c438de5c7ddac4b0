"""Render the report page: a single HTML file that needs no other files, network or server.

The data is embedded as JSON, and the page's own script builds everything from it. Text in the data
cannot inject markup or code, for three reasons: `_as_json` escapes it, the script only creates text
nodes from it, and a Content-Security-Policy forbids the page to load anything.
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
)  # these are joined, in this order, into one JavaScript module


def render(data: Mapping[str, Any]) -> str:
    """Return the whole page, to be written as UTF-8.

    Any part of `data` may be missing or empty. The page then says what is missing. Numbers that
    are not finite count as missing. The parts are:

    - `title`, `generated` (date and time as text), `version` (of mt)
    - `runs`, each with `name` (unique), `path`, `state`, `best_step`, `provenance` {label: value},
      and `curves` {`train`: {`step`, `loss`, `lr`, `tokens_per_second`}, `valid`: {`step`, `loss`,
      `bleu`, `chrf`}}, which are lists of numbers with increasing steps
    - `config_differences`, each with `key` and `values` (one per run; None if the run has no such
      key)
    - `tests`, each with `name`, `num_sentences`, `precision` (in which the models translated), and
      - `systems`, each with `name` (the name of its run, if there is one, so that both have the
        same colour), `length_ratio`, `scores` [`name`, `value`, `interval` (low, high) or None,
        `signature`], and `diagnosis` [`label`, `count`, `flag`]
      - `comparisons` of system number `b` with system number `a`: `wins`, `losses` and `ties`
        (number of sentences on which b is better, worse, equal), `verdict` (text), and `metrics`,
        each with `metric`, `difference` (b minus a) and `p_values` {test: p, or None if both
        systems score the same}
      - `buckets`, each with `title`, `labels`, `counts` (sentences per bucket), `metric`, and
        `values` [systems][buckets] (None if a bucket has no score)
      - `sentences`: `src` and `ref` [sentences]; `hyps`, `scores` (chrF) and `flags` (lists of
        flags of `diagnosis`) [systems][sentences]
      - `attention`, each with `sentence` and `system` (indices from 0), `src_tokens`, `read_tokens`
        (decoder input), `written_tokens` (decoder output), and `encoder`, `decoder`, `cross`, which
        have `shape` [layers, heads, queries, keys] and `data` (the weights times 255, as bytes in
        base64)
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
    """Write JSON that is safe inside a script element.

    Characters are escaped so that text cannot close the element, and so that lone surrogates do not
    prevent encoding the page as UTF-8.
    """
    text = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON cannot express them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
