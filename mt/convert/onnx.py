"""Export to ONNX (extra `onnx`): two graphs, which can be used with any search algorithm.

  encoder.onnx   Encodes the source.
                 Inputs: src [sentences, src_len], and src_mask of the same shape, True for tokens.
                 Outputs: memory_keys and memory_values of all decoder layers
                 [decoder_layers, sentences, num_heads, src_len, head_dim].
  decoder.onnx   Adds one token to each hypothesis.
                 Inputs: tokens [sentences, beams]; keys and values of the previous tokens
                 [decoder_layers, sentences, beams, num_heads, length, head_dim], with length 0 in
                 the first step; memory_keys, memory_values and src_mask.
                 Outputs: logits [sentences, beams, vocab_size]; new_keys and new_values, which are
                 the input keys and values, with the ones for `tokens` appended.
  onnx.json      Special ids, sizes, and the search options of the model.

To verify an export, `mt`'s own search uses these graphs, which onnxruntime runs.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mt.config import Config, ModelConfig
from mt.convert.extras import check_is_new, import_extra
from mt.convert.parity import num_positions
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from mt.decode.loading import LoadedModel
from mt.files import atomic_dir
from mt.model.attention import PaddedAttention, RecordedAttention
from mt.model.layers import Dropout
from mt.model.transformer import Transformer, for_translating

# The axes whose size may differ from call to call.
MASK_AXES, TOKEN_AXES, MEMORY_AXES, CACHE_AXES = (0, 1), (0, 1), (1, 3), (1, 2, 4)
Inputs = Mapping[str, tuple[Tensor, tuple[int, ...]]]  # maps names to (example, variable axes)


def export_onnx(loaded: LoadedModel, out: Path) -> None:
    """Write a folder with both graphs, in fp32.

    Raises `ExportError` if a package is not installed or `out` exists.
    """
    check_is_new(out)
    import_extra("onnx", "onnx")
    import_extra("onnxscript", "onnx")
    positions = num_positions(loaded.config.decode)
    encoder_inputs, decoder_inputs = _example_inputs(loaded.config.model)
    with atomic_dir(out) as temporary:
        model = for_translating(loaded.model)
        for embedding in (model.encoder.embed_tokens, model.decoder.embed_tokens):
            embedding.positions(positions)  # compute the table now, so that the graph contains it
        outputs = ["memory_keys", "memory_values"]
        _write(_Encoder(model), temporary / "encoder.onnx", encoder_inputs, outputs)
        outputs = ["logits", "new_keys", "new_values"]
        _write(_Decoder(model), temporary / "decoder.onnx", decoder_inputs, outputs)
        text = json.dumps(_description(loaded.config, positions), indent=2) + "\n"
        (temporary / "onnx.json").write_text(text, encoding="utf-8")
        shutil.copytree(loaded.folder.tokenizer, temporary / "tokenizer")


def _example_inputs(sizes: ModelConfig) -> tuple[Inputs, Inputs]:
    """Return example inputs of the encoder and the decoder.

    Each input has its own tensor, because inputs that share a tensor would become one input.
    """
    layers, heads, head_dim = (
        sizes.decoder_layers,
        sizes.num_heads,
        sizes.d_model // sizes.num_heads,
    )
    src, mask = torch.full((3, 7), 5), torch.ones(3, 7, dtype=torch.bool)
    memory = [torch.zeros(layers, 3, heads, 7, head_dim) for _ in range(2)]
    cache = [torch.zeros(layers, 3, 4, heads, 6, head_dim) for _ in range(2)]
    decoder_inputs = {
        "tokens": (src[:, :4].clone(), TOKEN_AXES),
        "keys": (cache[0], CACHE_AXES),
        "values": (cache[1], CACHE_AXES),
        "memory_keys": (memory[0], MEMORY_AXES),
        "memory_values": (memory[1], MEMORY_AXES),
        "src_mask": (mask, MASK_AXES),
    }
    return {"src": (src, MASK_AXES), "src_mask": (mask, MASK_AXES)}, decoder_inputs


def _description(config: Config, positions: int) -> dict[str, Any]:
    return {
        "pad_id": PAD_ID,
        "unk_id": UNK_ID,
        "bos_id": BOS_ID,
        "eos_id": EOS_ID,
        "decoder_layers": config.model.decoder_layers,
        "num_heads": config.model.num_heads,
        "head_dim": config.model.d_model // config.model.num_heads,
        "max_positions": positions,
        "decode": config.decode.model_dump(),
    }


def _write(module: nn.Module, path: Path, inputs: Inputs, outputs: list[str]) -> None:
    shapes = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, (_, axes) in inputs.items()
    }
    # The exporter warns about optional packages, and torch about its own deprecated calls.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(
            module.eval(),
            kwargs={name: tensor for name, (tensor, _) in inputs.items()},
            f=str(path),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


class _Encoder(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor, src_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the source for each decoder layer."""
        padded = PaddedAttention(src.shape[0], _bias(src_mask)[:, 0])
        memory = self.model.encode_flat(src, RecordedAttention(padded, lambda weights: None))
        cross: list[Any] = [layer.encoder_attn for layer in self.model.decoder.layers]
        keys, values = zip(*(attn.heads(memory, "kv") for attn in cross), strict=True)
        stacked_keys, stacked_values = (
            torch.stack([padded.by_sentence(x) for x in layers]) for layers in (keys, values)
        )
        return stacked_keys, stacked_values


class _Decoder(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        values: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        src_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, and the keys and values with the ones for `tokens` appended."""
        length = keys.shape[4]
        self_attn = _GrowingAttention(keys, values)
        cross_attn = _MemoryAttention(memory_keys, memory_values, _bias(src_mask))
        x = self.model.decoder(tokens.flatten(), length, length + 1, None, self_attn, cross_attn)
        logits = self.model.project(x).unflatten(0, tokens.shape)
        return logits, torch.stack(self_attn.new_keys), torch.stack(self_attn.new_values)


class _GrowingAttention:
    """Self-attention from each hypothesis's next token to its previous tokens.

    `attend` is called once per decoder layer, in order. It appends the next token's keys and values
    to the layer's keys and values, and collects the results in `new_keys` and `new_values`.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Attend with the keys and values of the next layer (see `mt.model.attention`)."""
        layer, shape = len(self.new_keys), self.keys.shape[1:3]
        q, k, v = (x.unflatten(0, shape)[:, :, :, None] for x in (q, k, v))
        self.new_keys.append(torch.cat([self.keys[layer], k], dim=3))
        self.new_values.append(torch.cat([self.values[layer], v], dim=3))
        weights = (q @ self.new_keys[-1].transpose(3, 4) * scale).softmax(dim=-1)
        return (weights @ self.new_values[-1]).flatten(2).flatten(0, 1)


class _MemoryAttention:
    """Cross-attention from each hypothesis's next token to the source sentence.

    `attend` is called once per decoder layer, in order.
    """

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor) -> None:
        self.layers, self.bias = iter(zip(keys, values, strict=True)), bias

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """Attend with the keys and values of the next layer (see `mt.model.attention`)."""
        keys, values = next(self.layers)  # [sentences, num_heads, src_len, head_dim]
        q = q.unflatten(0, (keys.shape[0], -1)).transpose(1, 2)
        weights = (q @ keys.transpose(2, 3) * scale + self.bias).softmax(dim=-1)
        return (weights @ values).transpose(1, 2).flatten(2).flatten(0, 1)


def _bias(mask: Tensor) -> Tensor:
    """Return the attention bias [sentences, 1, 1, src_len] of a mask [sentences, src_len].

    It is 0 where the mask is True and -inf elsewhere.
    """
    return torch.where(mask, 0.0, float("-inf"))[:, None, None]


@dataclass
class OnnxState:
    """The decoder graph's inputs that are kept between steps; see `mt.decode.search.State`."""

    keys: Tensor  # [decoder_layers, sentences, beams, num_heads, length, head_dim]
    values: Tensor
    memory_keys: Tensor
    memory_values: Tensor
    src_mask: Tensor

    def reorder(self, hyp_index: Tensor) -> None:
        """Replace the hypotheses of each sentence by those at `hyp_index` [sentences, beams]."""
        rows = torch.arange(len(hyp_index))[:, None]
        self.keys, self.values = self.keys[:, rows, hyp_index], self.values[:, rows, hyp_index]

    def keep(self, sentence_index: Tensor) -> None:
        """Keep only the sentences with these indices, in this order."""
        for name in ("keys", "values", "memory_keys", "memory_values"):
            setattr(self, name, getattr(self, name)[:, sentence_index])
        self.src_mask = self.src_mask[sentence_index]


class OnnxModel:
    """Runs an exported folder with onnxruntime, as an `mt.decode.search.StepModel`."""

    def __init__(self, folder: Path, threads: int) -> None:
        runtime = import_extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        paths = (str(folder / name) for name in ("encoder.onnx", "decoder.onnx"))
        self.encoder, self.decoder = (
            runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in paths
        )
        self.sizes = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))

    def initial_state(self, src: Tensor, src_mask: Tensor) -> OnnxState:
        """Encode `src` [sentences, src_len] and return the state before the first step."""
        outputs = self.encoder.run(None, {"src": src.numpy(), "src_mask": src_mask.numpy()})
        memory_keys, memory_values = (torch.from_numpy(array) for array in outputs)
        layers, heads, head_dim = (
            self.sizes[name] for name in ("decoder_layers", "num_heads", "head_dim")
        )
        cache = torch.zeros(layers, len(src), 1, heads, 0, head_dim)
        return OnnxState(cache, cache, memory_keys, memory_values, src_mask)

    def step(self, tokens: Tensor, state: OnnxState) -> Tensor:
        """Append `tokens` [sentences, beams] to the hypotheses, and return the log-probabilities
        [sentences, beams, vocab_size] of the tokens that may follow.
        """
        names = ("keys", "values", "memory_keys", "memory_values", "src_mask")
        inputs: dict[str, np.ndarray] = {name: getattr(state, name).numpy() for name in names}
        inputs["tokens"] = tokens.contiguous().numpy()
        outputs = self.decoder.run(None, inputs)
        logits, state.keys, state.values = (torch.from_numpy(array) for array in outputs)
        return logits.log_softmax(dim=-1)
