"""What importing modules computes: nothing, if the process is to be forked."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent


def computing_imports(modules: Sequence[str]) -> list[str]:
    """The tensor operations that importing these modules runs, in a fresh interpreter."""
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
    assert "ones" in last  # so that a recorder which sees nothing is not believed
    return calls
