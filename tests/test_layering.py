"""Rules for the code: a module imports only from lower floors, imports never form a circle, and
modules and functions are short.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mt"
FLOORS: dict[str, float] = {
    "errors": 1, "files": 2, "log": 2, "config": 3, "runtime": 3.5, "artifacts": 3.8,
    "data": 4, "model": 4, "decode": 6, "evaluation": 7, "train": 8, "convert": 8.5, "report": 8.5,
    "runs": 9, "cli": 10, "__main__": 11,
}  # fmt: skip
MODULES = {
    ".".join(("mt", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MAX_MODULE, MAX_BODY = 350, 50  # lines
WITH_FUNCTIONS = [
    *MODULES.values(),
    *sorted((ROOT / "scripts").rglob("*.py")),
    *sorted((ROOT / "tests/survival").rglob("*.py")),
]


def imported(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (line, module, whether it is imported at once) for each import of a module in `mt`.

    An import inside a function does not run at once, when `path` is imported, but only later.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_once = set(map(id, _at_once(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in dict.fromkeys(names):
            if name in MODULES and name != "mt":
                yield node.lineno, name, id(node) in at_once


def _at_once(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from _at_once(node)


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", [name for name in MODULES if name != "mt"])
def test_a_module_imports_only_from_lower_floors_or_its_own_room(module: str) -> None:
    here = room(module)
    assert here in FLOORS, f"{module} stands outside every room"
    for line, other, _ in imported(MODULES[module]):
        there = room(other)
        assert there == here or FLOORS[there] < FLOORS[here], (
            f"{MODULES[module]}:{line}: {here} imports {there}"
        )


def test_no_module_imports_itself_through_others() -> None:
    imports = {
        module: {other for _, other, at_once in imported(path) if at_once and other != module}
        for module, path in MODULES.items()
    }
    while free := [module for module, others in imports.items() if not others & imports.keys()]:
        for module in free:
            del imports[module]
    assert not imports, f"in a circle: {sorted(imports)}"


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_is_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE


def bodies() -> list[tuple[int, str]]:
    """Return the number of lines of every function, without its signature and docstring."""
    found = []
    for path in WITH_FUNCTIONS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[min(ast.get_docstring(node) is not None, len(node.body) - 1)]
                lines = (node.end_lineno or 0) - first.lineno + 1
                found.append((lines, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"))
    return sorted(found)


def test_a_function_fits_a_screen() -> None:
    found = bodies()
    assert not [name for lines, name in found if lines > MAX_BODY]
    assert found[int(0.9 * len(found))][0] <= MAX_BODY // 2
