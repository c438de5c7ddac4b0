"""Imports point down: a module imports from lower floors, or from its own room."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mt"
FLOORS: dict[str, float] = {
    "errors": 1, "files": 2, "log": 2, "config": 3, "runtime": 3.5, "artifacts": 3.8, "data": 4, "model": 4,
    "decode": 6, "evaluation": 7, "train": 8, "convert": 8.5, "report": 8.5,
    "runs": 9, "cli": 10, "__main__": 11,
}  # fmt: skip


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the project's own modules."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [
                f"{node.module}.{alias.name}" if node.module == "mt" else str(node.module)
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("mt.") and name.split(".")[1] in FLOORS:
                yield node.lineno, name.split(".")[1]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_imports_only_from_lower_floors_or_its_own_room(path: Path) -> None:
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    if here == "__init__":
        return  # its imports are lazy, by name
    assert here in FLOORS, f"{path} stands outside every room"
    for line, there in imported_rooms(path):
        assert there == here or FLOORS[there] < FLOORS[here], (
            f"{path}:{line}: {here} imports {there}"
        )
