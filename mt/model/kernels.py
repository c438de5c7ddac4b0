"""Faster ways to compute on a GPU: packed batches for flash attention, and compiled layers.

If a GPU cannot use one of them, a warning gives the reason, and the slower way is used.
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
    """Whether to pack training batches for flash attention. Warns if a GPU cannot do this.

    Flash attention needs half precision, an Ampere GPU or later, certain head sizes, and no
    attention dropout. Deterministic runs do not use it (see
    `mt.runtime.device.make_process_deterministic`).
    """
    if compute.device.type != "cuda" or compute.is_deterministic:
        return False
    major, minor = torch.cuda.get_device_capability(compute.device)
    head_dim = config.d_model // config.num_heads
    obstacles = {
        "precision: fp32": compute.dtype == torch.float32,
        f"model.attention_dropout: {config.attention_dropout}": config.attention_dropout > 0,
        f"compute capability {major}.{minor} (it needs 8.0, Ampere, or later)": major < 8,
        f"a head size (d_model / num_heads) of {head_dim} (it needs a multiple of 8 up to 256)": (
            head_dim % 8 != 0 or head_dim > 256
        ),
    }
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons:
        logger.warning(
            "batches are padded, which is slower than packing, because flash attention does not "
            "support %s",
            ", ".join(reasons),
        )
    return not reasons


def compile_layers(layers: Iterable[nn.Module], compute: Compute) -> None:
    """Compile each layer on a GPU, for batches of any size.

    Without a compiler, warn and leave the layers as they are.
    """
    if compute.device.type != "cuda":
        return
    if (missing := missing_compiler()) is not None:
        logger.warning(
            "train.compile: %s is missing, so layers are not compiled, which is slower",
            missing,
        )
        return
    for layer in layers:
        layer.compile(dynamic=True)


def missing_compiler() -> str | None:
    """Return what `torch.compile` is missing on a GPU, or None if it has all it needs."""
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
    """Compute what `varlen_attn` computes, one sequence at a time, on any device.

    It is slow, and meant for tests and for devices without the kernel.
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
