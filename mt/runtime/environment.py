"""The number of cores, and environment variables to set before PyTorch is imported."""

import os
import sys

SETTINGS = {
    # How often an OpenMP thread checks for new work before it sleeps; 1000 checks take some tens of
    # microseconds. The default is far higher, and waiting threads then occupy cores that other
    # threads need: next to one busy process, training lost two thirds of its speed instead of half.
    "GOMP_SPINCOUNT": "1000",
}


def prepare_environment() -> None:
    """Set environment variables for OpenMP, except those that the user has set.

    This must be called before PyTorch is imported, because OpenMP reads them when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
