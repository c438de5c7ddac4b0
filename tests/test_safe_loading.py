"""No file can make `mt` run code: nothing that unpickles or evaluates is called, by its usual name,
anywhere.
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
BANNED_CALLS = {"eval", "exec", "torch.load", "torch.save", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
                "np.load", "numpy.load", "os.system", "importlib.reload"}  # fmt: skip
HOSTILE = "tests/survival/hostile.py"  # makes a pickle, to see it refused
# Send pickles to processes that they have started, over sockets that those have inherited.
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
    """What of it is banned."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [
                alias.name for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES
            ]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in BANNED_MODULES else []
            found += [
                f"{node.module}.{a.name}"
                for a in node.names
                if f"{node.module}.{a.name}" in BANNED_CALLS
            ]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
            found.append(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    assert banned(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", OWN_CHILDREN)
def test_pickles_for_own_children_come_through_no_file_and_no_network(name: str) -> None:
    source = (ROOT / name).read_text(encoding="utf-8")
    assert set(banned(source)) <= {"multiprocessing", "multiprocessing.connection", "cloudpickle"}
    called = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
    }
    assert not called & {"open", "connection.Client", "connection.Listener", "Client", "Listener"}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "torch.load(f)", "yaml.load(f)", "eval(x)",
        "from torch import load", "from multiprocessing.connection import Client",
    ],
)  # fmt: skip
def test_the_gate_sees_what_is_banned(line: str) -> None:
    assert banned(line)
