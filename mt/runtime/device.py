"""Where and how precisely to compute: device, precision of matrix products, threads, and the memory allocator of the CPU."""

import contextlib
import ctypes
import logging
import os
import re
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from mt.errors import ConfigError, MTError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

# Values of ONEDNN_MAX_CPU_ISA that keep oneDNN from instructions for bf16 that the processor has.
ISA_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8"}
KEPT_PRODUCTS = 32  # of those that oneDNN compiles for bf16 on a CPU
# Workspaces with which cuBLAS adds up in a fixed order (its manual, "Results Reproducibility").
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")


@dataclass(frozen=True)
class Compute:
    """A device and the type of its matrix products; in training the weights stay in fp32."""

    device: torch.device
    dtype: torch.dtype
    is_deterministic: bool = False  # whether a GPU was told to give the same bits every time

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model runs."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def __str__(self) -> str:
        return self.describe(torch.get_num_threads())

    def describe(self, threads: int) -> str:
        """For people: the device with so many threads, and the precision."""
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"CPU, {threads} threads"
        )
        return f"{name}, {NAMES[self.dtype]}{', deterministic' if self.is_deterministic else ''}"


def choose_compute(
    device: str, precision: str, threads: int | None, *, for_training: bool = False,
    deterministic: bool = False,
) -> Compute:  # fmt: skip
    """Resolve `device` (auto, cpu, cuda, cuda:N) and `precision` (auto, fp32, bf16, fp16, int8), and set the CPU threads.

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
    if threads is not None:
        torch.set_num_threads(threads)
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
    return Compute(chosen, dtype, deterministic)


def is_bounded() -> bool:
    """Whether the system gives this process no more than so much memory (`ulimit -v`).

    Then freed memory must be free for all: oneDNN compiles into memory outside of the heap.
    """
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def keep_few_compiled_products() -> None:
    """Bound oneDNN's cache of compiled matrix products of bf16 and int8, and PyTorch's list of them.

    Each batch shape has its own, some forty. The 1,024 of the libraries take more memory than a small
    model trains in, up to 4 MiB each in bf16, and lie between its tensors, so that freed ones do not
    fit together any more. Has an effect if nothing was computed in bf16 or int8 before.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_PRODUCTS))


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


def available_memory(device: torch.device) -> int:
    """Bytes that a computation may take: all of a GPU that is free, or what the system and the container leave to this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(
            int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
        )
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" where it has none
        cgroup = Path("/sys/fs/cgroup")
        free.append(
            int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
        )
    return max(0, min(free))


def peak_process_memory() -> int:
    """Resident bytes of this process at their most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch got no memory for a tensor, on a GPU or on a CPU.

    oneDNN has no words of its own for it: what it lacks memory for "could not be created".
    """
    texts = (
        "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "could not create a primitive",
        "could not create a memory object",
    )  # fmt: skip
    is_typed = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_typed or any(text in str(error) for text in texts)


def in_halves(compute: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """The results of `compute(items)`, sentences; where memory runs out, those of each half by itself.

    Raises `MTError` where it runs out with a single one.
    """
    try:
        return compute(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise MTError(
                f"out of memory with a single sentence ({error}); try a smaller beam, or shorter sentences"
            ) from error
    # Out here the error is gone, and with it what the failed computation held.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning(
        "out of memory with %d sentences at once; going on with half as many", len(items)
    )
    middle = len(items) // 2
    return in_halves(compute, items[:middle]) + in_halves(compute, items[middle:])


def keep_freed_memory() -> None:
    """Stop glibc from giving large tensors back to the system after each use, which costs a page fault a page when they return.

    Up to 1 GiB of freed memory at the end of the heap is kept. In a process of bounded memory it is
    the other way round: all large tensors are given back.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # of malloc.h
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    if is_bounded():
        libc.mallopt(m_mmap_threshold, 1 << 17)
    else:
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)


def release_freed_memory() -> None:
    """Give what `keep_freed_memory` has kept so far back to the system."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
