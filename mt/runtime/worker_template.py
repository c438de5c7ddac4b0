"""The template of this process's worker processes (see `mt.runtime.template`).

Importing this imports no PyTorch: a command starts the template first, so that both processes
import it at the same time.
"""

import os
import sys
from pathlib import Path

from mt.runtime.template import Template

MODULES = (
    "mt.decode.translator",
    "mt.decode.likelihood",
    "mt.decode.alignment",
)  # of what workers do
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # the drivers of NVIDIA and AMD

_template: Template | None = None


def worker_template() -> Template:
    """The template of this process, started if it does not run."""
    global _template
    if _template is None or not _template.is_usable():
        _template = Template(MODULES)
    return _template


def start_early(workers: int | None, threads: int | None, device: str) -> None:
    """Start the template if a command with these options will probably have several workers.

    A wrong guess costs time, and nothing else: `Workers.choose` knows.
    """
    on_gpu = device != "cpu" and (device != "auto" or any(Path(gpu).exists() for gpu in GPUS))
    if sys.platform == "linux" and not on_gpu and (workers or threads or _usual_threads()) > 1:
        worker_template()


def _usual_threads() -> int:
    """How many threads PyTorch will take."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() else len(os.sched_getaffinity(0))
