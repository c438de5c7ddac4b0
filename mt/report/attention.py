"""The attention of chosen sentences, as a report shows it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mt.data.tokenizer import BOS_ID, EOS_ID
from mt.decode.translator import Translator
from mt.report.attend import attention_maps, token_names

MAX_TOKENS = 40  # a side: with 6 layers of 8 heads a sentence is 0.3 MB


def attention_entries(
    translators: Sequence[Translator], src: Sequence[str], sentences: Mapping[str, Any], count: int
) -> Iterator[dict[str, Any]]:
    """All maps of `count` sentences by each model: of those that are short enough, where the systems differ most, or one scores worst."""
    if not count:
        return
    scores, chosen = sentences["scores"], 0
    keys = [
        -abs(first - last) if len(scores) > 1 else first
        for first, last in zip(scores[0], scores[-1], strict=True)
    ]
    for line in sorted(range(len(src)), key=keys.__getitem__):
        ids = [
            _ids(model, src[line], hyps[line])
            for model, hyps in zip(translators, sentences["hyps"], strict=True)
        ]
        if all(0 < len(side) < MAX_TOKENS for pair in ids for side in pair):
            for number, (model, pair) in enumerate(zip(translators, ids, strict=True)):
                yield {"sentence": line, "system": number, **_maps(model, *pair)}
            chosen += 1
        if chosen == count:
            return


def _ids(translator: Translator, src: str, tgt: str) -> tuple[list[int], list[int]]:
    tokenizer = translator.tokenizer
    return tokenizer.encode_src([src])[0], tokenizer.encode_tgt([tgt])[0]


def _maps(translator: Translator, src: list[int], tgt: list[int]) -> dict[str, Any]:
    maps = attention_maps(translator.model, [*src, EOS_ID], [BOS_ID, *tgt])
    names = zip(
        ("src_tokens", "read_tokens", "written_tokens"),
        token_names(translator.tokenizer, src, tgt),
        strict=True,
    )
    return {
        **dict(names),
        **{name: _packed(getattr(maps, name)) for name in ("encoder", "decoder", "cross")},
    }


def _packed(weights: Tensor) -> dict[str, Any]:
    """Shape and bytes, 255 for a weight of 1, in base64."""
    return {
        "shape": list(weights.shape),
        "data": base64.b64encode(
            (weights * 255).round().to(torch.uint8).numpy().tobytes()
        ).decode(),
    }
