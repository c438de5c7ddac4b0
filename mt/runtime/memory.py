"""Memory: how much there is, what an allocator keeps, and what to do where it runs out."""

import contextlib
import ctypes
import logging
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from mt.errors import MTError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
KEPT_PRODUCTS = 32  # of those that oneDNN compiles for bf16 on a CPU


def keep_freed_memory() -> None:
    """Stop glibc from giving large tensors back to the system after each use, which costs a page
    fault a page when they return.

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


def is_bounded() -> bool:
    """Whether the system gives this process no more than so much memory (`ulimit -v`).

    Then freed memory must be free for all: oneDNN compiles into memory outside of the heap.
    """
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def keep_few_compiled_products() -> None:
    """Bound oneDNN's cache of compiled matrix products of bf16 and int8, and PyTorch's list of
    them.

    Each batch shape has its own, some forty. The 1,024 of the libraries take more memory than a
    small model trains in, up to 4 MiB each in bf16, and lie between its tensors, so that freed ones
    do not fit together any more. Has an effect if nothing was computed in bf16 or int8 before.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KEPT_PRODUCTS))


def available_memory(device: torch.device) -> int:
    """Bytes that a computation may take: all of a GPU that is free, or what the system and the
    container leave to this process.
    """
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
    """The results of `compute(items)`, sentences; where memory runs out, those of each half by
    itself.

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
