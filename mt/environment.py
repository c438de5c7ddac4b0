"""Settings of native libraries, which read them from the environment once, as PyTorch loads or first computes."""

import os

SETTINGS = {
    # How often an OpenMP thread looks whether there is work before it sleeps: some tens of microseconds.
    # Threads that look for longer take the core from whatever else wants it, their own partners included:
    # beside one busy process training loses two thirds of its speed instead of half.
    "GOMP_SPINCOUNT": "1000",
    # Matrix products of bf16 and int8 that oneDNN has compiled, one for each shape, and PyTorch's own list
    # of them. An update needs some forty; at the libraries' 1,024 they take, and scatter through the heap,
    # more memory than a small model trains in.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


def prepare_environment() -> None:
    """Make these settings, before PyTorch is imported. What the user has set is left alone."""
    for name, value in SETTINGS.items():
        if name != "GOMP_SPINCOUNT" or "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault(name, value)
