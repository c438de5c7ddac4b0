"""Find out what importing modules computes; a process to be forked must compute nothing."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def computing_imports(modules: Sequence[str]) -> list[str]:
    """Return the tensor operations that run when a fresh interpreter imports these modules."""
    code = (
        "import importlib, json, sys, torch\n"
        "from torch.utils._python_dispatch import TorchDispatchMode\n"
        "class Recorder(TorchDispatchMode):\n"
        "    calls = []\n"
        "    def __torch_dispatch__(self, call, types, args=(), options=None):\n"
        "        self.calls.append(str(call)); return call(*args, **(options or {}))\n"
        f"sys.path[:] = {sys.path!r}\n"
        "with Recorder() as recorder:\n"
        "    for name in sys.argv[1:]: importlib.import_module(name)\n"
        "    torch.ones(2)\n"
        "print(json.dumps(recorder.calls))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *calls, last = json.loads(result.stdout)
    assert "ones" in last  # otherwise, the recorder does not work
    return calls
