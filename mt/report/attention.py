"""What a model looks at: the attention of one sentence and its translation, chosen by kind, layer
and head, ready to be drawn.
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
    "encoder": ("Encoder: self-attention", "rows: source tokens, columns: where they look"),
    "decoder": (
        "Decoder: masked self-attention",
        "rows: tokens read so far, columns: where they look",
    ),
    "cross": (
        "Decoder: cross-attention",
        "rows: tokens as they are written, columns: source tokens",
    ),
}
MAX_IDS = 512  # of a sentence
MAX_TOKENS = 40  # a side in a report: with 6 layers of 8 heads a sentence is 0.3 MB
HEADS_IN_A_ROW = 4  # of one layer


@dataclass(frozen=True)
class AttentionMaps:
    """The weights of one sentence pair in fp32 on the CPU; each row, the last dimension, sums to 1."""

    encoder: Tensor  # [encoder_layers, num_heads, src_len, src_len]
    decoder: Tensor  # [decoder_layers, num_heads, tgt_len, tgt_len], zero after the diagonal
    cross: Tensor  # [decoder_layers, num_heads, tgt_len, src_len]


@torch.no_grad()
def attention_maps(
    model: Transformer, src_ids: Sequence[int], tgt_ids: Sequence[int]
) -> AttentionMaps:
    """All weights of one pair of ids: the source with its end of sentence, the target with its
    beginning.
    """
    assert not model.training, "a model in training drops what is to be seen"
    device = model.output_weight.device
    src, tgt_in = (torch.tensor([ids], device=device) for ids in (src_ids, tgt_ids))
    seen: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    all_tokens, causal = PaddedAttention(1, None), PaddedAttention.causal(tgt_in)
    attentions = zip((all_tokens, causal, all_tokens), seen, strict=True)
    recorded = [RecordedAttention(padded, weights.append) for padded, weights in attentions]
    model.attending(src, tgt_in, *recorded)
    return AttentionMaps(*(torch.cat(weights).float().cpu() for weights in seen))


@dataclass(frozen=True)
class Attended:
    """A sentence, its translation, their tokens, and who attended to whom."""

    src: str
    tgt: str
    src_tokens: list[str]  # end of sentence last
    read_tokens: list[str]  # what the decoder reads, beginning of sentence first
    written_tokens: list[str]  # what it writes after each of them, end of sentence last
    maps: AttentionMaps


def attend(path: Path, sentence: str, target: str | None = None) -> Attended:
    """The attention of a model while it translates `sentence` into `target`, or into its own best
    translation.

    Raises `CheckpointError` for a folder that is no model, and `ConfigError` for text without
    tokens or with too many.
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
    return Attended(sentence, text, *token_names(tokenizer, src, tgt), maps)


def _ids(
    name: str, text: str, encode: Callable[[Sequence[str]], list[list[int]]], limit: int
) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{name}: not UTF-8 at character {error.start + 1}; give text in UTF-8"
        ) from error
    [ids] = encode([text])
    if not ids:
        raise ConfigError(f"{name}: {text!r} is empty; give some words to attend to")
    if len(ids) > limit:
        raise ConfigError(
            f"{name}: {len(ids):,} subwords, more than a picture can show; give at most {limit:,}"
        )
    return ids


def token_names(
    tokenizer: Tokenizer, src: Iterable[int], tgt: Iterable[int]
) -> tuple[list[str], list[str], list[str]]:
    """The pieces of a source, of what the decoder reads and of what it writes, for ids without
    begin and end.
    """
    src_tokens = [tokenizer.src_pieces[i] for i in src]
    tgt_tokens = [tokenizer.tgt_pieces[i] for i in tgt]
    begin, end = tokenizer.tgt_pieces[BOS_ID], tokenizer.tgt_pieces[EOS_ID]
    return [*src_tokens, tokenizer.src_pieces[EOS_ID]], [begin, *tgt_tokens], [*tgt_tokens, end]


def figures(
    attended: Attended, kind: str = "all", layer: str | None = None, head: str = "mean"
) -> list[Figure]:
    """The maps of one kind of attention (encoder, decoder, cross) or of all, a figure each.

    `layer` is a number from 1, `all`, or None for the last layer but one of each stack; `head` is a
    number from 1, `all` or `mean`. Raises `ConfigError` for one that is not there.
    """
    return [_figure(attended, each, layer, head) for each in (TITLES if kind == "all" else [kind])]


def _figure(attended: Attended, kind: str, layer: str | None, head: str) -> Figure:
    rows, columns = {
        "encoder": (attended.src_tokens, attended.src_tokens),
        "decoder": (attended.read_tokens, attended.read_tokens),
        "cross": (attended.written_tokens, attended.src_tokens),
    }[kind]
    weights: Tensor = getattr(attended.maps, kind)  # [layers, heads, rows, columns]
    num_layers, num_heads = weights.shape[:2]
    stack = "the encoder" if kind == "encoder" else "the decoder"
    layers = (
        [max(0, num_layers - 2)]
        if layer is None
        else _chosen("--layer", layer, num_layers, f"{stack} has layers")
    )
    heads = (
        [None]
        if head == "mean"
        else _chosen("--head", head, num_heads, "a layer has heads", " or mean")
    )
    maps = [_map(weights[i], i, num_layers, h, rows, columns) for i in layers for h in heads]
    return Figure(
        *TITLES[kind], maps, len(heads) if len(layers) > 1 and len(heads) > 1 else HEADS_IN_A_ROW
    )


def _chosen(option: str, value: str, count: int, what: str, other: str = "") -> list[int]:
    """The indices that a number from 1 or `all` names."""
    if value == "all":
        return list(range(count))
    if value.isascii() and value.isdigit() and 1 <= int(value) <= count:
        return [int(value) - 1]
    raise ConfigError(f"{option} {value}: {what} 1 to {count}; give one of them, all{other}")


def _map(
    weights: Tensor,
    layer: int,
    num_layers: int,
    head: int | None,
    rows: Sequence[str],
    columns: Sequence[str],
) -> HeatMap:
    """Of one layer's `weights` [heads, rows, columns], one head or the mean."""
    num_heads = len(weights)
    chosen = weights.mean(dim=0) if head is None else weights[head]
    name = f"mean of {num_heads} heads" if head is None else f"head {head + 1} of {num_heads}"
    return HeatMap(f"layer {layer + 1} of {num_layers}, {name}", rows, columns, chosen.tolist())


def attention_entries(
    translators: Sequence[Translator], src: Sequence[str], sentences: Mapping[str, Any], count: int
) -> Iterator[dict[str, Any]]:
    """All maps of `count` sentences by each model: of those that are short enough, where the
    systems differ most, or one scores worst.
    """
    if not count:
        return
    scores, chosen = sentences["scores"], 0
    keys = [
        -abs(first - last) if len(scores) > 1 else first
        for first, last in zip(scores[0], scores[-1], strict=True)
    ]
    for line in sorted(range(len(src)), key=keys.__getitem__):
        ids = [
            _pair_ids(model, src[line], hyps[line])
            for model, hyps in zip(translators, sentences["hyps"], strict=True)
        ]
        if all(0 < len(side) < MAX_TOKENS for pair in ids for side in pair):
            for number, (model, pair) in enumerate(zip(translators, ids, strict=True)):
                yield {"sentence": line, "system": number, **_maps(model, *pair)}
            chosen += 1
        if chosen == count:
            return


def _pair_ids(translator: Translator, src: str, tgt: str) -> tuple[list[int], list[int]]:
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
