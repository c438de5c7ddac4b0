"""Export to ONNX (extra `onnx`): the encoder and one cached step of the decoder, to be run by
onnxruntime under any search.

  encoder.onnx   src [sentences, src_len] and src_mask, True where a token stands -> memory_keys,
                 memory_values [decoder_layers, sentences, num_heads, src_len, head_dim]
  decoder.onnx   tokens [sentences, beams], keys and values [decoder_layers, sentences, beams,
                 num_heads, length, head_dim] of the tokens before (length 0 at first), memory_keys,
                 memory_values, src_mask -> logits [sentences, beams, vocab_size], and keys and
                 values with one more length
  onnx.json      special ids, sizes, and the search that the model was made for
Here the search is our own, with onnxruntime in the model's place.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mt.convert.extras import import_extra
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from mt.decode.loading import LoadedModel
from mt.decode.search import max_output_len
from mt.errors import ExportError
from mt.files import atomic_dir
from mt.model.attention import PaddedAttention, RecordedAttention
from mt.model.layers import Dropout
from mt.model.transformer import Transformer, for_translating

MASK_AXES, TOKEN_AXES, MEMORY_AXES, CACHE_AXES = (
    (0, 1),
    (0, 1),
    (1, 3),
    (1, 2, 4),
)  # those whose size a call chooses


def export_onnx(loaded: LoadedModel, out: Path) -> None:
    """Write a model as a folder of two graphs in fp32. Raises `ExportError` where a package is
    missing or `out` exists.
    """
    if out.exists():
        raise ExportError(f"{out}: exists already; choose another folder")
    import_extra("onnx", "onnx")
    import_extra("onnxscript", "onnx")
    decode = loaded.config.decode
    num_positions = max(
        1024,
        decode.longest_src + 1,
        max_output_len(decode.longest_src + 1, decode.max_len_a, decode.max_len_b),
    )
    sizes = loaded.config.model
    head_dim = sizes.d_model // sizes.num_heads
    src, mask = torch.full((3, 7), 5), torch.ones(3, 7, dtype=torch.bool)
    # Two of each: inputs that share an example would be one input of the graph.
    memory = [torch.zeros(sizes.decoder_layers, 3, sizes.num_heads, 7, head_dim) for _ in range(2)]
    cache = [
        torch.zeros(sizes.decoder_layers, 3, 4, sizes.num_heads, 6, head_dim) for _ in range(2)
    ]
    with atomic_dir(out) as temporary:
        model = for_translating(loaded.model)
        for embedding in (model.encoder.embed_tokens, model.decoder.embed_tokens):
            embedding.positions(num_positions)  # all of them go into the graph
        encoder, decoder = _Encoder(model).eval(), _Decoder(model).eval()
        sources = {"src": (src, MASK_AXES), "src_mask": (mask, MASK_AXES)}
        _write(encoder, temporary / "encoder.onnx", sources, ["memory_keys", "memory_values"])
        inputs = {
            "tokens": (src[:, :4].clone(), TOKEN_AXES), "keys": (cache[0], CACHE_AXES), "values": (cache[1], CACHE_AXES),
            "memory_keys": (memory[0], MEMORY_AXES), "memory_values": (memory[1], MEMORY_AXES), "src_mask": (mask, MASK_AXES),
        }  # fmt: skip
        _write(decoder, temporary / "decoder.onnx", inputs, ["logits", "new_keys", "new_values"])
        ids = {"pad_id": PAD_ID, "unk_id": UNK_ID, "bos_id": BOS_ID, "eos_id": EOS_ID}
        layers = {
            "decoder_layers": sizes.decoder_layers,
            "num_heads": sizes.num_heads,
            "head_dim": head_dim,
        }
        described = {**ids, **layers, "max_positions": num_positions, "decode": decode.model_dump()}
        (temporary / "onnx.json").write_text(
            json.dumps(described, indent=2) + "\n", encoding="utf-8"
        )
        shutil.copytree(loaded.folder.tokenizer, temporary / "tokenizer")


def _write(
    module: nn.Module,
    path: Path,
    inputs: Mapping[str, tuple[Tensor, tuple[int, ...]]],
    outputs: list[str],
) -> None:
    shapes = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for name, (_, axes) in inputs.items()
    }
    examples = {name: tensor for name, (tensor, _) in inputs.items()}
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns of packages that nobody asked for
    with warnings.catch_warnings(action="ignore"):  # of torch's own parts to one another
        torch.onnx.export(
            module, kwargs=examples, f=str(path), input_names=list(inputs), output_names=outputs, dynamic_shapes=shapes, dynamo=True,
            external_data=False, verbose=False,
        )  # fmt: skip


class _Encoder(nn.Module):
    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor, src_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the source for each decoder layer."""
        padded = PaddedAttention(src.shape[0], _bias(src_mask)[:, 0])
        memory = self.model.encode_flat(src, RecordedAttention(padded, lambda weights: None))
        keys, values = zip(
            *(layer.encoder_attn.heads(memory, "kv") for layer in self.model.decoder.layers),  # type: ignore[operator, union-attr]
            strict=True,
        )
        return torch.stack([padded.by_sentence(k) for k in keys]), torch.stack(
            [padded.by_sentence(v) for v in values]
        )


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
        """Logits, and keys and values with those of `tokens` at their end."""
        length = keys.shape[4]
        own = _GrowingAttention(keys, values)
        cross = _MemoryAttention(memory_keys, memory_values, _bias(src_mask))
        x = self.model.decoder(tokens.flatten(), length, length + 1, None, own, cross)
        logits = self.model.project(x).unflatten(0, tokens.shape)
        return logits, torch.stack(own.new_keys), torch.stack(own.new_values)


class _GrowingAttention:
    """Of one more token of each hypothesis over the tokens before; what it has seen is kept, layer
    by layer.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.new_keys: list[Tensor] = []
        self.new_values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """With the keys and values of the next layer."""
        layer, shape = len(self.new_keys), self.keys.shape[1:3]
        q, k, v = (x.unflatten(0, shape)[:, :, :, None] for x in (q, k, v))
        self.new_keys.append(torch.cat([self.keys[layer], k], dim=3))
        self.new_values.append(torch.cat([self.values[layer], v], dim=3))
        weights = (q @ self.new_keys[-1].transpose(3, 4) * scale).softmax(dim=-1)
        return (weights @ self.new_values[-1]).flatten(2).flatten(0, 1)


class _MemoryAttention:
    """Of one more token of each hypothesis to the source of its sentence, layer by layer."""

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor) -> None:
        self.layers, self.bias = iter(zip(keys, values, strict=True)), bias

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: Dropout) -> Tensor:
        """With the keys and values of the next layer."""
        keys, values = next(self.layers)  # [sentences, num_heads, src_len, head_dim]
        q = q.unflatten(0, (keys.shape[0], -1)).transpose(1, 2)
        weights = (q @ keys.transpose(2, 3) * scale + self.bias).softmax(dim=-1)
        return (weights @ values).transpose(1, 2).flatten(2).flatten(0, 1)


def _bias(mask: Tensor) -> Tensor:
    """Of a mask [sentences, src_len]: 0 where a token stands, -inf elsewhere, for all heads and
    queries.
    """
    return torch.where(mask, 0.0, float("-inf"))[:, None, None]


@dataclass
class OnnxState:
    """What a search may do with what the graphs keep; see `mt.decode.search.State`."""

    keys: Tensor  # [decoder_layers, sentences, beams, num_heads, length, head_dim]
    values: Tensor
    memory_keys: Tensor
    memory_values: Tensor
    src_mask: Tensor

    def reorder(self, hyp_index: Tensor) -> None:
        """The beams `hyp_index` [sentences, beams] of each sentence."""
        rows = torch.arange(len(hyp_index))[:, None]
        self.keys, self.values = self.keys[:, rows, hyp_index], self.values[:, rows, hyp_index]

    def keep(self, sentence_index: Tensor) -> None:
        """Only some sentences, in this order."""
        for name in ("keys", "values", "memory_keys", "memory_values"):
            setattr(self, name, getattr(self, name)[:, sentence_index])
        self.src_mask = self.src_mask[sentence_index]


class OnnxModel:
    """An exported folder in onnxruntime, in the place of a model in a search
    (`mt.decode.search.StepModel`).
    """

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
        """Encode `src` [sentences, src_len]."""
        found = self.encoder.run(None, {"src": src.numpy(), "src_mask": src_mask.numpy()})
        memory_keys, memory_values = (torch.from_numpy(array) for array in found)
        cache = torch.zeros(
            self.sizes["decoder_layers"],
            len(src),
            1,
            self.sizes["num_heads"],
            0,
            self.sizes["head_dim"],
        )
        return OnnxState(cache, cache, memory_keys, memory_values, src_mask)

    def step(self, tokens: Tensor, state: OnnxState) -> Tensor:
        """Log-probabilities [sentences, beams, vocab_size] of what follows one more token
        [sentences, beams] of each hypothesis.
        """
        names = ("keys", "values", "memory_keys", "memory_values", "src_mask")
        inputs: dict[str, np.ndarray] = {name: getattr(state, name).numpy() for name in names}
        logits, keys, values = (
            torch.from_numpy(x)
            for x in self.decoder.run(None, {"tokens": tokens.contiguous().numpy(), **inputs})
        )
        state.keys, state.values = keys, values
        return logits.log_softmax(dim=-1)
