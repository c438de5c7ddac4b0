"""Export to CTranslate2 (extra `ct2`), with our SentencePiece models, and run exported models."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mt.config import DecodeConfig
from mt.convert.extras import check_is_new, import_extra
from mt.convert.parity import Translated, by_source_length, num_positions
from mt.data.tokenizer import BOS_ID, EOS_ID, UNK_ID, Tokenizer
from mt.decode.loading import LoadedModel
from mt.files import atomic_dir
from mt.model.attention import MultiHeadAttention
from mt.model.layers import sinusoids
from mt.model.transformer import Decoder, DecoderLayer, Encoder, Layer

QUANTIZATIONS = ("int8", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16")


def export_ctranslate2(loaded: LoadedModel, out: Path, quantization: str | None = None) -> None:
    """Write a folder for `ctranslate2.Translator`, with fp32 weights or the given `quantization`.

    Raises `ExportError` if the package is not installed or `out` exists.
    """
    check_is_new(out)
    spec = _specification(loaded)
    spec.validate()
    spec.optimize(quantization=quantization)
    with atomic_dir(out) as temporary:
        spec.save(str(temporary))
        for model in loaded.folder.tokenizer.iterdir():
            shutil.copyfile(model, temporary / model.name)


def _specification(loaded: LoadedModel) -> Any:
    specs = import_extra("ctranslate2", "ct2").specs
    model, config = loaded.model, loaded.config.model
    activations = {
        "relu": specs.Activation.RELU,
        "gelu": specs.Activation.GELU,
        "silu": specs.Activation.SWISH,
    }
    spec = specs.TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.num_heads,
        pre_norm=config.norm == "pre",
        activation=activations[config.activation],
    )
    positions = num_positions(loaded.config.decode)
    _set_stack(spec.encoder, model.encoder, positions)
    _set_stack(spec.decoder, model.decoder, positions)
    spec.decoder.projection.weight = _array(model.output_weight)
    if model.output_bias is not None:
        spec.decoder.projection.bias = _array(model.output_bias)
    pieces = loaded.tokenizer.tgt_pieces
    spec.register_source_vocabulary(loaded.tokenizer.src_pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.add_source_eos = True
    spec.config.unk_token = pieces[UNK_ID]
    spec.config.bos_token = pieces[BOS_ID]
    spec.config.eos_token = pieces[EOS_ID]
    spec.config.decoder_start_token = pieces[BOS_ID]
    return spec


def _set_stack(spec: Any, stack: Encoder | Decoder, positions: int) -> None:
    embeddings = spec.embeddings[0] if isinstance(spec.embeddings, list) else spec.embeddings
    weight = stack.embed_tokens.weight
    embeddings.weight, embeddings.multiply_by_sqrt_depth = _array(weight), True
    spec.position_encodings.encodings = sinusoids(positions, weight.shape[1]).numpy()
    if isinstance(stack.layer_norm, nn.LayerNorm):
        _set_norm(spec.layer_norm, stack.layer_norm)
    for layer_spec, layer in zip(spec.layer, stack.layers, strict=True):
        _set_layer(layer_spec, layer)  # type: ignore[arg-type]


def _set_layer(spec: Any, layer: Layer) -> None:
    attn = layer.self_attn
    _set_linear(spec.self_attention.linear[0], attn.q_proj, attn.k_proj, attn.v_proj)
    _set_linear(spec.self_attention.linear[1], attn.out_proj)
    _set_norm(spec.self_attention.layer_norm, layer.self_attn_layer_norm)
    if isinstance(layer, DecoderLayer):
        cross: MultiHeadAttention = layer.encoder_attn
        _set_linear(spec.attention.linear[0], cross.q_proj)
        _set_linear(spec.attention.linear[1], cross.k_proj, cross.v_proj)
        _set_linear(spec.attention.linear[2], cross.out_proj)
        _set_norm(spec.attention.layer_norm, layer.encoder_attn_layer_norm)
    _set_linear(spec.ffn.linear_0, layer.fc1)
    _set_linear(spec.ffn.linear_1, layer.fc2)
    _set_norm(spec.ffn.layer_norm, layer.final_layer_norm)


def _set_linear(spec: Any, *layers: nn.Linear) -> None:
    """Set a linear layer, or several layers that CTranslate2 stores as a single one."""
    spec.weight = _array(torch.cat([layer.weight for layer in layers]))
    spec.bias = _array(torch.cat([layer.bias for layer in layers]))


def _set_norm(spec: Any, norm: nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Tensor) -> Any:
    return (
        tensor.detach().cpu().float().numpy().copy()
    )  # a copy, because CTranslate2 quantizes in place


class CTranslate2Engine:
    """An `mt.convert.parity.Engine` that runs an exported model in CTranslate2.

    Runs `translators` batches in parallel, with `threads` threads each.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        decode: DecodeConfig,
        translators: int,
        threads: int,
        compute_type: str = "float32",
    ) -> None:
        module = import_extra("ctranslate2", "ct2")
        self.translator = module.Translator(
            str(folder), compute_type=compute_type, inter_threads=translators, intra_threads=threads
        )
        self.decode = decode
        self.src_pieces, self.tgt_pieces = tokenizer.src_pieces, tokenizer.tgt_pieces
        self.tgt_ids = {piece: i for i, piece in enumerate(self.tgt_pieces)}

    def translate(self, sources: Sequence[list[int]]) -> Translated:
        """Return the best hypothesis for each source, with its score."""
        return by_source_length(sources, self.decode, self.translate_batch)

    def translate_batch(self, sources: Sequence[list[int]], max_len: int) -> Translated:
        """Like `translate`, but with the same maximum output length for all sources."""
        results = self.translator.translate_batch(
            [[self.src_pieces[token] for token in source] for source in sources],
            beam_size=self.decode.beam_size,
            length_penalty=self.decode.length_penalty,
            max_decoding_length=max_len,
            min_decoding_length=0,
            max_input_length=0,
            max_batch_size=self.decode.batch_size,
            return_scores=True,
        )
        return [
            ([self.tgt_ids[piece] for piece in result.hypotheses[0]], result.scores[0])
            for result in results
        ]

    def score(self, source: list[int], target: list[int]) -> float:
        """Return the score of `target`, as defined by `mt.convert.parity.Engine.score`."""
        src_pieces = [self.src_pieces[token] for token in source]
        tgt_pieces = [self.tgt_pieces[token] for token in target]
        [result] = self.translator.score_batch([src_pieces], [tgt_pieces])
        return float(sum(result.log_probs) / len(result.log_probs) ** self.decode.length_penalty)
