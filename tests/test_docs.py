"""The commands in the README and the docs: cheap ones are run, costly ones are only checked.

Bash runs each cheap command as it is printed, with placeholders filled in. The folder looks like a
clone after the quickstart, except that the model in `runs/` is a very small one.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, sample_lines

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PLACEHOLDERS = {"FILE": "configs/quickstart.yaml", "MODEL": "runs/quickstart"}
RUNS = ("quickstart", "multi30k-de-en", "multi30k-narrow")
# Commands that train, download, install or measure; everything else must run in seconds.
COSTLY = re.compile(
    r"scripts/|python scripts/|pip |torchrun |mt (train|launch|import|reproduce|prepare) "
    r"|mt evaluate runs/multi30k"
)
EXTRAS_OF_EXPORTS = {"ct2": "ctranslate2", "onnx": "onnxruntime", "pegasus": "transformers"}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield (page, text) for every fenced block in the given language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield page.name, block


def commands() -> list[tuple[str, str]]:
    """Return (page, command) for every command in a shell block, without repetitions."""
    found = {}
    for page, block in blocks("sh"):
        for line in block.replace("\\\n", " ").split("\n"):
            command = re.sub(r"(^|\s+)# .*", "", line).strip()
            if command:
                found.setdefault(command, page)
    return [(page, command) for command, page in found.items()]


CHEAP = [(page, command) for page, command in commands() if not COSTLY.match(command)]
EXPENSIVE = [(page, command) for page, command in commands() if COSTLY.match(command)]


def words(command: str) -> list[str]:
    """Return the words of a command, with placeholders replaced."""
    return [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]


@pytest.fixture
def clone(trained_run: Path, tmp_path: Path) -> Path:
    """Return a folder with everything the commands expect."""
    for name in ("configs", "scripts", "constraints.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(ROOT / "data/sample")
    for run in RUNS:
        shutil.copytree(trained_run, tmp_path / "runs" / run, symlinks=True)
    for language in ("de", "en"):
        text = "\n".join(sample_lines("test", language, 20)) + "\n"
        for split in ("input", "test", "train", "valid"):
            (tmp_path / f"{split}.{language}").write_text(text, encoding="utf-8")
            subprocess.run(["gzip", "-k", f"{split}.{language}"], cwd=tmp_path, check=True)
    shutil.copy(tmp_path / "test.en", tmp_path / "test.hyp")
    (tmp_path / "my.yaml").write_text(next(yaml for _, yaml in blocks("yaml")), encoding="utf-8")
    return tmp_path


def run(clone: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in the clone."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=clone, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(("page", "command"), CHEAP, ids=[command for _, command in CHEAP])
def test_a_cheap_command_runs(page: str, command: str, clone: Path) -> None:
    for folder, package in EXTRAS_OF_EXPORTS.items():
        if f"-o {folder}" in command:
            pytest.importorskip(package)
    result = run(clone, "bash", "-euo", "pipefail", "-c", shlex_join(words(command)))
    assert result.returncode == 0, result.stderr


def shlex_join(parts: list[str]) -> str:
    """Return a shell command with these words; redirections and pipes keep their meaning."""
    return " ".join(part if part in "<>|" else shlex.quote(part) for part in parts)


@pytest.mark.parametrize(("page", "command"), EXPENSIVE, ids=[command for _, command in EXPENSIVE])
def test_a_costly_command_parses_and_its_files_exist(
    page: str, command: str, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone)
    parts = words(command.split(" | ")[0].split(" < ")[0].split(" > ")[0])
    ours = [part for part in parts if part.startswith(("scripts/", "configs/"))]
    assert not [path for path in ours if not Path(path).exists()]
    if parts[0] == "pip":
        check_extras(command)
    elif "mt" in parts:
        check_mt(parts[parts.index("mt") + 1 :])
    else:
        script = next(part for part in parts if part.startswith("scripts/"))
        source = Path(script).read_text(encoding="utf-8")
        assert not [part for part in parts if part.startswith("--") and part not in source]


def check_extras(command: str) -> None:
    """Check that the project has all extras that a `pip install` command names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"\[(.*?)\]", command)
    assert {name for names in extras for name in names.split(",")} <= {
        *project["optional-dependencies"]
    }


def check_mt(arguments: list[str]) -> None:
    """Check that `mt` accepts the options, and the configuration accepts the overrides."""
    from typer.main import get_command

    from mt.cli import build_app
    from mt.config import load_config

    command = get_command(build_app())
    while arguments and hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    command.make_context("mt", list(arguments))
    if command.name == "train":
        overrides = [part for part in arguments if re.match(r"[a-z_.]+=", part)]
        load_config(next(part for part in arguments if part.endswith(".yaml")), overrides)


@pytest.mark.parametrize(("page", "code"), list(blocks("python")))
def test_a_python_block_runs(page: str, code: str, clone: Path) -> None:
    result = run(clone, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("page", "text"), list(blocks("yaml")))
def test_a_configuration_loads(page: str, text: str, tmp_path: Path) -> None:
    from mt.config import load_config

    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).data.train


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_ends_with_what_it_does_not_cover(page: Path) -> None:
    headings = re.findall(r"^## (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[-1] == "Not covered"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
