"""Where and how precisely to compute: device, precision of matrix products, threads."""

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
from mt.runtime.memory import is_bounded, keep_few_compiled_products, keep_freed_memory

logger = logging.getLogger(__name__)

# Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from instructions for bf16 that the processor has.
ISA_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}
# Workspaces with which cuBLAS adds up in a fixed order (its manual, "Results Reproducibility").
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Compute:
    """A device and the type of its matrix products; in training the weights stay in fp32."""

    device: torch.device
    dtype: torch.dtype
    is_deterministic: bool = False  # whether a GPU was told to give the same bits every time
    threads: int | None = None  # of a CPU; None: as many as PyTorch has

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a model that is not packed runs; int8 is for packed ones."""
        if self.dtype in (torch.float32, torch.int8):
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    @property
    def num_threads(self) -> int:
        """Threads of a CPU."""
        return self.threads or torch.get_num_threads()

    def set_threads(self) -> "Compute":
        """Let this process have these threads from now on: for whoever owns the process."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return self

    @contextlib.contextmanager
    def limited_threads(self) -> Iterator[None]:
        """Compute with these threads while the block runs."""
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
        """For people: the device, its threads, and the precision."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {self.num_threads} threads"
        )
        return f"{name}, {NAMES[self.dtype]}{', deterministic' if self.is_deterministic else ''}"


def set_up_compute(
    device: str, precision: str, threads: int | None, *, for_training: bool = False,
    deterministic: bool = False,
) -> Compute:  # fmt: skip
    """Resolve `device` (auto, cpu, cuda, cuda:N) and `precision` (auto, fp32, bf16, fp16, int8).

    `auto` means bf16 for training if the hardware has it. For all else it means fp32, because a
    translation and its score should be the same on every machine. int8 is for translating.
    `deterministic` changes what a GPU does; a CPU is deterministic anyway. bf16 is allowed on
    hardware without it, with a warning that it is slow. Raises `ConfigError` for a GPU that is not
    there, for fp16 on a CPU, and for int8 where PyTorch has no such products.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9]\d?))?", device):
        raise ConfigError(f"device: {device!r} is none of auto, cpu, cuda, cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise ConfigError(
            f"device: {device} is not there; PyTorch sees {torch.cuda.device_count()} GPUs (use cpu or auto)"
        )
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # streams and events are made on the current device
    if chosen.type == "cuda":
        # cuDNN's attention builds a plan for every new shape, and a search has a new one at each
        # step: on an H200, half precision then translated 4 to 12 times slower than without it.
        torch.backends.cuda.enable_cudnn_sdp(False)
    native = has_native_bf16(chosen)
    if precision == "bf16" and not native:
        logger.warning(
            "precision: bf16 has no hardware support on this %s and will be slow; fp32 is the faster choice",
            chosen.type,
        )
    if precision == "fp16" and chosen.type == "cpu":
        raise ConfigError(
            "precision: fp16 is for GPUs; a CPU computes in fp32, or in bf16 where it has the hardware (auto finds out)"
        )
    if precision == "int8" and (chosen.type != "cpu" or not torch.backends.mkldnn.is_available()):
        raise ConfigError(
            f"precision: int8 is for CPUs that PyTorch's oneDNN supports, not for this {chosen.type}"
        )
    if precision == "auto":
        precision = "bf16" if native and for_training else "fp32"
    if chosen.type == "cpu":
        keep_freed_memory()
        if precision == "bf16" or is_bounded():
            keep_few_compiled_products()
    deterministic = deterministic and chosen.type == "cuda"
    if deterministic:
        make_deterministic()
    dtype = next(dtype for dtype, name in NAMES.items() if name == precision)
    return Compute(chosen, dtype, deterministic, threads)


def make_deterministic() -> None:
    """Let CUDA give the same bits every time, for the rest of this process.

    An operation that has no deterministic way raises an error. Of attention's kernels two are left:
    PyTorch's own products, and the memory-efficient kernel, which then adds up in a fixed order;
    cuDNN's backward pass has none.
    """
    if os.environ.get(CUBLAS_WORKSPACE) not in DETERMINISTIC_WORKSPACES:
        os.environ[CUBLAS_WORKSPACE] = DETERMINISTIC_WORKSPACES[0]  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are faster than fp32 here: Ampere GPUs and later, CPUs with
    AVX512-BF16 or AMX that oneDNN may use (ONEDNN_MAX_CPU_ISA).

    For a CPU, the environment variable MT_NATIVE_BF16=0 or 1 gives the answer of another processor,
    to try and to test what happens there. Raises `ConfigError` for another value of it.
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
    return bool(
        capabilities.get("avx512_bf16")
        or capabilities.get("amx_bf16")
        or capabilities.get("amx_tile")
    )
