"""What is there before anything is loaded: cores, and settings that native libraries read from the
environment once.
"""

import os
import sys

SETTINGS = {
    # How often an OpenMP thread looks for work before it sleeps: some tens of microseconds. Threads
    # that look for longer take the core from whatever else wants it, their own partners included:
    # beside one busy process, training then loses two thirds of its speed instead of half.
    "GOMP_SPINCOUNT": "1000",
}


def prepare_environment() -> None:
    """Make these settings, before PyTorch is imported. What the user has set is left alone."""
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)


def num_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
