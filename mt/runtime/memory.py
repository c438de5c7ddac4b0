"""Memory: how much there is, how allocators use it, and what happens when it runs out."""

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
ONEDNN_CACHE_SIZE = 32  # number of compiled matrix products that oneDNN keeps


def configure_malloc() -> None:
    """Make this process keep the memory of freed tensors for reuse.

    By default, glibc's `malloc` returns the memory of large tensors to the system, and getting it
    back costs a page fault per page. At most 1 GiB of free memory at the end of the heap is kept.
    In a process with a memory limit, the memory of large tensors is always returned instead,
    because oneDNN needs memory outside of the heap as well.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # from malloc.h
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    if has_memory_limit():
        libc.mallopt(m_mmap_threshold, 1 << 17)
    else:
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 1 << 30)


def release_freed_memory() -> None:
    """Return the memory to the system that this process keeps because of `configure_malloc`."""
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def has_memory_limit() -> bool:
    """Whether the address space of this process is limited (`ulimit -v`)."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def limit_onednn_cache() -> None:
    """Limit the number of compiled matrix products that oneDNN and PyTorch keep in this process.

    In bf16 and int8, oneDNN compiles about forty matrix products for each new batch shape, each of
    up to 4 MiB. By default, it keeps 1,024 of them, which takes more memory than training a small
    model. They also fragment the heap, because they are stored between tensors. The limit has no
    effect if the process has already computed in bf16 or int8.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(ONEDNN_CACHE_SIZE))


def available_memory(device: torch.device) -> int:
    """Return the number of bytes that a computation on `device` can use.

    For a GPU, this is its free memory. For a CPU, it is the free memory of the system or of the
    container, whichever is smaller.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free.append(
            int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
        )
    # The memory limit of a container, or the word "max" if there is no limit.
    with contextlib.suppress(OSError, ValueError):
        cgroup = Path("/sys/fs/cgroup")
        free.append(
            int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
        )
    return max(0, min(free))


def peak_process_memory() -> int:
    """Return the maximum resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch raised `error` because memory ran out, on a GPU or on a CPU."""
    # oneDNN does not mention memory. It only says that it could not create an object.
    texts = (
        "can't allocate memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "could not create a primitive",
        "could not create a memory object",
    )
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        text in str(error) for text in texts
    )


def halve_if_out_of_memory(
    compute: Callable[[Sequence[T]], list[R]], items: Sequence[T]
) -> list[R]:
    """Return `compute(items)`. If memory runs out, compute each half of `items` separately.

    The items are sentences. Raises `MTError` if memory runs out even for a single sentence.
    """
    try:
        return compute(items)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise MTError(
                f"out of memory with a single sentence ({error});\n"
                "use a smaller beam or shorter sentences"
            ) from error
    # Outside the `except` block, no traceback keeps the tensors of the failed call alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory with %d sentences; continuing with half as many", len(items))
    middle = len(items) // 2
    first_half = halve_if_out_of_memory(compute, items[:middle])
    return first_half + halve_if_out_of_memory(compute, items[middle:])
