"""Attention maps: compute the attention weights of a sentence, and prepare them for drawing.

`mt attend` shows the maps of one sentence. `mt report` includes the maps of a few sentences.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mt.data.tokenizer import BOS_ID, EOS_ID, Tokenizer
from mt.decode.translator import Translator
from mt.errors import ConfigError
from mt.model.attention import PaddedAttention, RecordedAttention
from mt.model.transformer import Transformer
from mt.report.heatmap import Figure, HeatMap

TITLES = {
    "encoder": ("Encoder: self-attention", "rows: source tokens, columns: what they attend to"),
    "decoder": (
        "Decoder: masked self-attention",
        "rows: decoder input, columns: what it attends to",
    ),
    "cross": ("Decoder: cross-attention", "rows: decoder output, columns: source tokens"),
}
MAX_IDS = 512  # maximum source length in subwords for `mt attend`; targets may have twice as many
# Sentences with more subwords get no maps in a report. At this length, the maps of a model with
# 6 layers of 8 heads make the file 0.3 MB larger.
MAX_TOKENS = 40
HEADS_IN_A_ROW = 4  # number of maps side by side if only one layer is drawn


@dataclass(frozen=True)
class AttentionMaps:
    """The attention weights of one sentence pair, in fp32 on the CPU.

    The weights in the last dimension sum to 1.
    """

    encoder: Tensor  # [encoder_layers, num_heads, src_len, src_len]
    decoder: Tensor  # [decoder_layers, num_heads, tgt_len, tgt_len], zero right of the diagonal
    cross: Tensor  # [decoder_layers, num_heads, tgt_len, src_len]


@torch.no_grad()
def attention_maps(
    model: Transformer, src_ids: Sequence[int], tgt_ids: Sequence[int]
) -> AttentionMaps:
    """Compute all attention weights of one sentence pair.

    `src_ids` ends with the end-of-sentence id, `tgt_ids` begins with the begin-of-sentence id.
    """
    assert not model.training, "dropout would zero some of the weights"
    device = model.output_weight.device
    src, tgt_in = (torch.tensor([ids], device=device) for ids in (src_ids, tgt_ids))
    recorded: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    unmasked, causal = PaddedAttention(1, None), PaddedAttention.causal(tgt_in)
    recorders = [
        RecordedAttention(attention, weights.append)
        for attention, weights in zip((unmasked, causal, unmasked), recorded, strict=True)
    ]
    model.attending(src, tgt_in, *recorders)
    return AttentionMaps(*(torch.cat(weights).float().cpu() for weights in recorded))


@dataclass(frozen=True)
class SentenceAttention:
    """A sentence, its translation, the tokens of both, and all attention weights."""

    src: str
    tgt: str
    src_tokens: list[str]  # with the end-of-sentence token
    read_tokens: list[str]  # decoder input, with the begin-of-sentence token
    written_tokens: list[str]  # decoder output, with the end-of-sentence token
    maps: AttentionMaps


def attend(path: Path, sentence: str, target: str | None = None) -> SentenceAttention:
    """Compute the attention weights of a model for `sentence` and `target`.

    `target` defaults to the model's own translation. Raises `CheckpointError` if `path` is not a
    model, and `ConfigError` if a text has no subwords or too many.
    """
    translator = Translator.load(path, device="cpu", precision="fp32")
    tokenizer = translator.tokenizer
    src = _ids("SENTENCE", sentence, tokenizer.encode_src, MAX_IDS)
    if target is None:
        tgt = translator.search([src])[0][0].tokens
    else:
        tgt = _ids("--target", target, tokenizer.encode_tgt, 2 * MAX_IDS)
    maps = attention_maps(translator.model, [*src, EOS_ID], [BOS_ID, *tgt])
    text = tokenizer.decode_tgt(tgt) if target is None else target
    return SentenceAttention(sentence, text, *token_names(tokenizer, src, tgt), maps)


def _ids(
    name: str, text: str, encode: Callable[[Sequence[str]], list[list[int]]], limit: int
) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name}: character {error.start + 1} is not valid UTF-8; give text in UTF-8"
        ) from error
    [ids] = encode([text])
    if not ids:
        raise ConfigError(f"{name}: {text!r} is empty; give at least one word")
    if len(ids) > limit:
        raise ConfigError(
            f"{name}: {len(ids):,} subwords do not fit into a picture; give at most {limit:,}"
        )
    return ids


def token_names(
    tokenizer: Tokenizer, src: Iterable[int], tgt: Iterable[int]
) -> tuple[list[str], list[str], list[str]]:
    """Return the pieces of source, decoder input and decoder output.

    `src` and `tgt` have no begin and end ids, but the returned lists include these tokens.
    """
    src_tokens = [tokenizer.src_pieces[i] for i in src]
    tgt_tokens = [tokenizer.tgt_pieces[i] for i in tgt]
    begin, end = tokenizer.tgt_pieces[BOS_ID], tokenizer.tgt_pieces[EOS_ID]
    return [*src_tokens, tokenizer.src_pieces[EOS_ID]], [begin, *tgt_tokens], [*tgt_tokens, end]


def figures(
    attention: SentenceAttention, kind: str = "all", layer: str | None = None, head: str = "mean"
) -> list[Figure]:
    """Make figures of the given kind of attention: `encoder`, `decoder`, `cross` or `all`.

    `layer` is a number from 1, `all`, or None for the second-to-last layer. `head` is a number
    from 1, `all` or `mean`. Raises `ConfigError` if the layer or head does not exist.
    """
    return [_figure(attention, name, layer, head) for name in (TITLES if kind == "all" else [kind])]


def _figure(attention: SentenceAttention, kind: str, layer: str | None, head: str) -> Figure:
    rows, columns = {
        "encoder": (attention.src_tokens, attention.src_tokens),
        "decoder": (attention.read_tokens, attention.read_tokens),
        "cross": (attention.written_tokens, attention.src_tokens),
    }[kind]
    weights: Tensor = getattr(attention.maps, kind)  # [layers, heads, rows, columns]
    num_layers, num_heads = weights.shape[:2]
    stack = "the encoder" if kind == "encoder" else "the decoder"
    layers = (
        [max(0, num_layers - 2)]
        if layer is None
        else _indices("--layer", layer, num_layers, f"{stack} has layers")
    )
    heads = (
        [None]
        if head == "mean"
        else _indices("--head", head, num_heads, "a layer has heads", " or mean")
    )
    maps = [_map(weights[i], i, num_layers, h, rows, columns) for i in layers for h in heads]
    is_grid = len(layers) > 1 and len(heads) > 1  # one row per layer
    return Figure(*TITLES[kind], maps, len(heads) if is_grid else HEADS_IN_A_ROW)


def _indices(option: str, value: str, count: int, what: str, other: str = "") -> list[int]:
    """Convert the value of an option, a number from 1 or `all`, to indices from 0."""
    if value == "all":
        return list(range(count))
    if value.isascii() and value.isdigit() and 1 <= int(value) <= count:
        return [int(value) - 1]
    raise ConfigError(f"{option} {value}: {what} 1 to {count}; give a number, all{other}")


def _map(
    weights: Tensor,
    layer: int,
    num_layers: int,
    head: int | None,
    rows: Sequence[str],
    columns: Sequence[str],
) -> HeatMap:
    """Make a map of one head of `weights` [heads, rows, columns], or of their mean for None."""
    num_heads = len(weights)
    name = f"mean of {num_heads} heads" if head is None else f"head {head + 1} of {num_heads}"
    shown = weights.mean(dim=0) if head is None else weights[head]
    return HeatMap(f"layer {layer + 1} of {num_layers}, {name}", rows, columns, shown.tolist())


def attention_entries(
    translators: Sequence[Translator], src: Sequence[str], sentences: Mapping[str, Any], count: int
) -> Iterator[dict[str, Any]]:
    """Yield the attention maps of `count` sentences by each model, for the report page.

    These are the sentences for which the chrF of the first and the last system differs most. If
    there is only one system, they are its worst sentences. Long sentences are skipped.
    """
    scores = sentences["scores"]
    keys = [
        -abs(first - last) if len(scores) > 1 else first
        for first, last in zip(scores[0], scores[-1], strict=True)
    ]
    num_left = count
    for line in sorted(range(len(src)), key=keys.__getitem__):
        if not num_left:
            return
        pairs = [
            (
                model.tokenizer.encode_src([src[line]])[0],
                model.tokenizer.encode_tgt([hyps[line]])[0],
            )
            for model, hyps in zip(translators, sentences["hyps"], strict=True)
        ]
        if all(0 < len(side) < MAX_TOKENS for pair in pairs for side in pair):
            for system, (model, pair) in enumerate(zip(translators, pairs, strict=True)):
                yield {"sentence": line, "system": system, **_maps(model, *pair)}
            num_left -= 1


def _maps(translator: Translator, src: list[int], tgt: list[int]) -> dict[str, Any]:
    maps = attention_maps(translator.model, [*src, EOS_ID], [BOS_ID, *tgt])
    src_tokens, read_tokens, written_tokens = token_names(translator.tokenizer, src, tgt)
    return {
        "src_tokens": src_tokens,
        "read_tokens": read_tokens,
        "written_tokens": written_tokens,
        **{kind: _packed(getattr(maps, kind)) for kind in TITLES},
    }


def _packed(weights: Tensor) -> dict[str, Any]:
    """Pack weights for JSON: one byte per weight (255 for a weight of 1), in base64."""
    data = (weights * 255).round().to(torch.uint8).numpy().tobytes()
    return {"shape": list(weights.shape), "data": base64.b64encode(data).decode()}
