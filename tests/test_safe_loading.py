"""No file can make `mt` run code, because nothing in `mt` unpickles or evaluates data.

The test searches the source for the usual names of such functions and modules.
"""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

BANNED_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "multiprocessing",
}
BANNED_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "np.load",
    "numpy.load",
    "os.system",
    "importlib.reload",
}
HOSTILE = "tests/survival/hostile.py"  # writes a pickle, and checks that mt refuses it
# These modules send pickles only over inherited sockets to processes they have started.
OWN_CHILDREN = (
    "mt/runtime/template.py",
    "mt/runtime/workers.py",
    "mt/runtime/sharing.py",
    "tests/survival/warm.py",
)
EXEMPT = {ROOT / name for name in (HOSTILE, *OWN_CHILDREN)}
FOLDERS = ("mt", "scripts", "tests/survival")
FILES = sorted({path for name in FOLDERS for path in (ROOT / name).rglob("*.py")} - EXEMPT)


def banned(source: str) -> list[str]:
    """Return the banned modules and calls in the given source code."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [
                alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES
            ]
        elif isinstance(node, ast.ImportFrom):
            names += [str(node.module)] if str(node.module).split(".")[0] in BANNED_MODULES else []
            names += [
                f"{node.module}.{a.name}"
                for a in node.names
                if f"{node.module}.{a.name}" in BANNED_CALLS
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            names.append(ast.unparse(node.func))
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    assert banned(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", OWN_CHILDREN)
def test_pickles_for_child_processes_use_no_files_and_no_network(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    assert set(banned(source)) <= {"multiprocessing", "multiprocessing.connection", "cloudpickle"}
    called = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    }
    assert not called & {"open", "connection.Client", "connection.Listener", "Client", "Listener"}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "yaml.load(f)",
        "eval(x)",
        "from torch import load",
        "from multiprocessing.connection import Client",
    ],
)
def test_banned_modules_and_calls_are_found(line: str) -> None:
    assert banned(line)
