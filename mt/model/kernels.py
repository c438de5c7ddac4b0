"""What a GPU does differently where it can: packed batches and compiled layers; where it cannot,
one warning says why.
"""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mt.config import ModelConfig
from mt.runtime.device import Compute

logger = logging.getLogger(__name__)


def packs(config: ModelConfig, compute: Compute) -> bool:
    """Whether training batches are packed for flash attention; if a GPU cannot, a warning says why.

    Flash attention needs half precision, an Ampere GPU or later, heads of certain sizes, and no
    dropout of attention weights. A deterministic run pads too:
    `mt.runtime.device.make_deterministic`.
    """
    if compute.device.type != "cuda" or compute.is_deterministic:
        return False
    major, minor = torch.cuda.get_device_capability(compute.device)
    head_dim = config.d_model // config.num_heads
    obstacles = {
        "precision: fp32": compute.dtype == torch.float32,
        f"model.attention_dropout: {config.attention_dropout}": config.attention_dropout > 0,
        f"a GPU of compute capability {major}.{minor} (8.0, Ampere, or later will do)": major < 8,
        f"heads of {head_dim} (d_model / num_heads; multiples of 8 up to 256 will do)": head_dim % 8
        != 0
        or head_dim > 256,
    }
    found = [what for what, there in obstacles.items() if there]
    if found:
        logger.warning(
            "batches are padded, which is slower than packed: flash attention cannot do %s",
            ", ".join(found),
        )
    return not found


def compile_layers(layers: Iterable[nn.Module], compute: Compute) -> None:
    """Compile each layer for batches of any size; without a compiler, warn and leave them as they
    are.
    """
    if compute.device.type != "cuda":
        return
    if (missing := missing_compiler()) is not None:
        logger.warning(
            "train.compile: %s is missing, so layers run uncompiled, which is slower", missing
        )
        return
    for layer in layers:
        layer.compile(dynamic=True)


def missing_compiler() -> str | None:
    """What `torch.compile` would need on a GPU and does not find, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton"
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        return "a C compiler (cc, gcc or clang)"
    return None


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int],
) -> Tensor:
    """`varlen_attn` for devices without its kernel, sequence by sequence: to test with, not to be
    fast.
    """
    tgt_lens, src_lens = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    sequences = zip(query.split(tgt_lens), key.split(src_lens), value.split(src_lens), strict=True)
    causal = window_size == (-1, 0)
    heads_first = ([x.transpose(0, 1) for x in sequence] for sequence in sequences)
    return torch.cat(
        [
            F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(0, 1)
            for q, k, v in heads_first
        ]
    )
