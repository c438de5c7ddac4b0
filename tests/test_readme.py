"""What the README and docs/architecture.md say about folders, commands and links is true."""

import re
import subprocess
from pathlib import Path

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def tracked() -> set[str]:
    """Return all files in the repository, including new ones that git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return set(listed.stdout.split())


def tree_paths() -> set[str]:
    """Return the paths in the tree in docs/architecture.md.

    The tree indents each level by two spaces, and the name of a folder ends in `/`.
    """
    block = re.search(r"```text\n(mt/.*?)```", ARCHITECTURE, re.DOTALL)
    assert block, "docs/architecture.md has no tree"
    paths, stack = set(), []
    for line in block[1].rstrip().split("\n"):
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"  +", line.strip())[0].split(", "):
            del stack[depth:]
            paths.add("".join(stack) + name)
        if name.endswith("/"):
            stack.append(name)
    return paths


def test_the_tree_is_the_real_tree_of_the_package() -> None:
    drawn = tree_paths()
    real = {
        path
        for path in tracked()
        if path.startswith("mt/") and path.endswith(".py") and not path.endswith("__init__.py")
    }
    assert {path for path in drawn if path.endswith(".py") and path.startswith("mt/")} == real
    missing = [path for path in drawn if not (ROOT / path).exists()]
    assert not missing


def test_every_room_is_in_the_readme() -> None:
    rooms = {
        "/".join(path.split("/")[:2]) + "/" for path in tracked() if re.match(r"mt/\w+/", path)
    }
    assert set(re.findall(r"^\| `(mt/\w+/)`", README, re.MULTILINE)) == rooms


def test_every_top_level_folder_is_drawn() -> None:
    folders = {
        path.split("/")[0] + "/" for path in tracked() if "/" in path and not path.startswith(".")
    }
    assert folders <= tree_paths()


def test_every_command_of_the_readme_exists() -> None:
    from typer.main import get_command

    from mt.cli import build_app

    commands = set(get_command(build_app()).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r"^\s*(?:\$ )?(?:\S+ \| )?mt ([a-z]+)", README, re.MULTILINE))
    assert used
    assert used <= commands, used - commands


def test_every_file_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\]\(([^)#:]+)\)", README)) | set(
        re.findall(r"(?:scripts|configs)/[\w/-]+\.(?:sh|py|yaml)", README)
    )
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_options_in_the_readme_are_real() -> None:
    import inspect

    from mt.cli.translate import translate

    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(translate).parameters} | {
        "--output"
    }
    section = README.split("## Translate")[1].split("\n## ")[0]
    used = set(re.findall(r"(--[a-z0-9-]+)", section))
    assert used <= known, used - known


def test_nothing_in_the_repository_names_this_machine() -> None:
    paths = [
        path
        for path in tracked()
        if Path(path).suffix in {".py", ".md", ".yaml", ".toml", ".sh", ".txt"}
    ]
    private = re.compile(r"/work/|/root/|pypi\.org|file:///")
    named = [
        path
        for path in paths
        if path != "tests/test_readme.py"
        and private.search((ROOT / path).read_text(encoding="utf-8"))
    ]
    assert not named
