"""The device, the precision of matrix products, and the number of threads to compute with."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from mt.errors import ConfigError
from mt.runtime.memory import configure_malloc, has_memory_limit, limit_onednn_cache

logger = logging.getLogger(__name__)

# Values of ONEDNN_MAX_CPU_ISA with which oneDNN does not use the processor's bf16 instructions.
ISA_WITHOUT_BF16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)
PRECISION_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "int8",
}
# Settings that make cuBLAS deterministic (see "Results Reproducibility" in its manual).
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Compute:
    """A device, the dtype of its matrix products, and its CPU threads.

    In training, the weights are always in fp32, even if the matrix products are not.
    """

    device: torch.device
    dtype: torch.dtype
    is_deterministic: bool = False  # whether a GPU is set to return the same bits every time
    threads: int | None = None  # number of CPU threads; None means PyTorch's setting

    def autocast(self) -> AbstractContextManager[Any]:
        """Return an autocast context for bf16 and fp16, or one that does nothing."""
        if self.dtype in (torch.float32, torch.int8):
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def num_threads(self) -> int:
        """The number of CPU threads."""
        return self.threads or torch.get_num_threads()

    def set_process_threads(self) -> "Compute":
        """Let PyTorch use `threads` threads in the whole process, and return `self`.

        Only commands should call this, because a library must not change its user's settings.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return self

    @contextlib.contextmanager
    def temporary_process_threads(self) -> Iterator[None]:
        """Use `num_threads` PyTorch threads in the whole process while the block runs."""
        before = torch.get_num_threads()
        if self.num_threads == before:
            yield
            return
        torch.set_num_threads(self.num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def __str__(self) -> str:
        """Return the device, its threads and the precision, for messages."""
        name = f"CPU, {self.num_threads} threads"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        suffix = ", deterministic" if self.is_deterministic else ""
        return f"{name}, {PRECISION_NAMES[self.dtype]}{suffix}"


def set_up_compute(
    device: str,
    precision: str,
    threads: int | None,
    *,
    for_training: bool = False,
    deterministic: bool = False,
) -> Compute:
    """Check `device` and `precision`, and configure PyTorch for them in the whole process.

    `device` is auto, cpu, cuda or cuda:N, and `precision` is auto, fp32, bf16, fp16 or int8 (for
    translation only). The precision `auto` means bf16 for training on hardware that supports it. In
    all other cases it means fp32, because a translation and its score should be the same on every
    machine. `deterministic` only affects GPUs, because CPUs are always deterministic. The
    threads are not set here, but by methods of the returned `Compute`.

    Raises `ConfigError` if the GPU does not exist, for fp16 on a CPU, and for int8 if PyTorch does
    not support it. Warns that bf16 is slow if the hardware does not support it.
    """
    chosen = _parse_device(device)
    if chosen.type == "cuda":
        _configure_cuda(chosen)
    has_bf16 = has_native_bf16(chosen)
    if precision == "auto":
        precision = "bf16" if has_bf16 and for_training else "fp32"
    _check_precision(precision, chosen.type, has_bf16)
    if chosen.type == "cpu":
        configure_malloc()
        if precision == "bf16" or has_memory_limit():
            limit_onednn_cache()
    deterministic = deterministic and chosen.type == "cuda"
    if deterministic:
        make_process_deterministic()
    dtype = next(dtype for dtype, name in PRECISION_NAMES.items() if name == precision)
    return Compute(chosen, dtype, deterministic, threads)


def _parse_device(device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", device):
        raise ConfigError(f"device: {device!r} is not one of auto, cpu, cuda, cuda:N")
    parsed = torch.device(device)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if parsed.type == "cuda" and (parsed.index or 0) >= num_gpus:
        raise ConfigError(
            f"device: {device} does not exist; PyTorch finds {num_gpus} GPUs (use cpu or auto)"
        )
    return parsed


def _configure_cuda(device: torch.device) -> None:
    """Make `device` the current GPU of this process, and turn off cuDNN's attention."""
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and events are created on the current GPU
    # cuDNN's attention prepares a plan for each new shape, and every step of a search has a new
    # shape. On an H200, it made translation in half precision 4 to 12 times slower.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _check_precision(precision: str, device_type: str, has_bf16: bool) -> None:
    if precision == "bf16" and not has_bf16:
        logger.warning(
            "precision: bf16 has no hardware support on this %s and will be slow; fp32 is faster",
            device_type,
        )
    if precision == "fp16" and device_type == "cpu":
        raise ConfigError(
            "precision: fp16 is for GPUs; a CPU computes in fp32, or in bf16 if the hardware\n"
            "supports it (use auto)"
        )
    if precision == "int8" and (device_type != "cpu" or not torch.backends.mkldnn.is_available()):
        raise ConfigError(f"precision: int8 needs a CPU with oneDNN; the device is {device_type}")


def make_process_deterministic() -> None:
    """Make CUDA return the same bits every time, for the rest of this process.

    Operations without a deterministic implementation then raise an error. Flash attention and
    cuDNN's attention are disabled. PyTorch's plain attention and its memory-efficient attention
    stay enabled, because they can add in a fixed order.
    """
    if os.environ.get(CUBLAS_WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        os.environ[CUBLAS_WORKSPACE] = DETERMINISTIC_WORKSPACES[
            0
        ]  # cuBLAS reads this when it is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware supports bf16, so that matrix products in bf16 are faster than in fp32.

    This is the case for GPUs from Ampere on, and for CPUs with AVX512-BF16 or AMX, unless the
    environment variable ONEDNN_MAX_CPU_ISA forbids these instructions. For a CPU, the environment
    variable MT_NATIVE_BF16 (0 or 1) overrides the result, to test what happens on other processors.
    Raises `ConfigError` for any other value.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if forced := os.environ.get("MT_NATIVE_BF16"):
        if forced not in ("0", "1"):
            raise ConfigError(f"MT_NATIVE_BF16 is {forced!r} in the environment; use 0 or 1")
        return forced == "1"
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    if isa.upper() in ISA_WITHOUT_BF16:
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "amx_tile"))
