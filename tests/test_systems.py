"""Emulate other systems: `mt` refuses Windows, and does not need what macOS lacks."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

# At the start of a program, this code removes the modules that Windows lacks.
WINDOWS = "import sys\nsys.platform = 'win32'\nsys.modules.update(fcntl=None, resource=None)\n"
# This code removes what macOS lacks. It first imports PyTorch, whose macOS build is not emulated.
MACOS = """
import builtins, ctypes, errno, io, os, select, signal, sys
import torch, torch._dynamo
sys.platform = "darwin"
for module, names in {
    os: ("posix_fadvise", "posix_fallocate", "memfd_create", "eventfd", "pidfd_open",
         "sched_getaffinity", "sched_setaffinity"),
    signal: ("SIGPWR", "SIGRTMIN", "SIGRTMAX", "SIGSTKFLT"),
    select: ("epoll",),
}.items():
    for name in names:
        vars(module).pop(name, None)

def without_linux_folders(call):
    def checked(path, *args, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, "not on this system", str(path))
        return call(path, *args, **options)
    return checked

builtins.open = io.open = without_linux_folders(io.open)
for name in ("stat", "open", "listdir", "scandir"):
    setattr(os, name, without_linux_folders(getattr(os, name)))

class NoLibrary:
    def __init__(self, name=None):
        raise OSError("a call into the C library")

ctypes.CDLL = NoLibrary
"""
COMMAND_LINE = "sys.argv = ['mt', *sys.argv[1:]]\nfrom mt.cli import main\nmain()\n"
USE_WSL = "mt does not run on Windows; install WSL (`wsl --install`) and use mt inside it"

Finished = subprocess.CompletedProcess[str]
COMMANDS = [[], ["--help"], ["--version"], ["train", "no-such.yaml"], ["translate", "no-such-run"]]


def run_python(*args: str | Path, env: dict[str, str] | None = None) -> Finished:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **(env or {})},
        capture_output=True, text=True, cwd=ROOT, timeout=120, check=False,
    )  # fmt: skip


def run_on_macos(*args: str | Path) -> Finished:
    return run_python("-c", MACOS + COMMAND_LINE, *args)


@pytest.fixture
def windows(tmp_path: Path) -> dict[str, str]:
    """Return environment variables that make Python take the system for Windows from the start."""
    (tmp_path / "sitecustomize.py").write_text(WINDOWS)
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}"}


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("name", ["mt", "mt.exe", "-m"])
def test_every_command_on_windows_ends_in_one_message(
    name: str, arguments: list[str], windows: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / name  # the script that pip installs as the command
    script.write_text("import sys\nfrom mt.cli import main\nsys.exit(main())\n")
    result = run_python(*(["-m", "mt"] if name == "-m" else [script]), *arguments, env=windows)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"{USE_WSL}\n")


@pytest.mark.parametrize("name", ["mt", "mt.cli", "mt.files", "mt.decode.translator"])
def test_an_import_on_windows_raises_one_clear_error(name: str, windows: dict[str, str]) -> None:
    code = f"try:\n import {name}\nexcept ImportError as error:\n print(error, error.__context__)"
    result = run_python("-c", code, env=windows)
    assert result.stderr == ""
    assert result.stdout == f"{USE_WSL} None\n"


def test_a_system_without_file_locks_is_refused_by_its_name() -> None:
    code = "import sys; sys.platform = 'plan9'; sys.modules['fcntl'] = None; import mt"
    result = run_python("-c", code)
    message = "ImportError: mt needs Linux or macOS and does not run on plan9"
    assert result.stderr.splitlines()[-1] == message


def test_the_emulated_macos_lacks_what_it_should() -> None:
    code = """
from pathlib import Path
print(Path("/proc/cpuinfo").exists(), hasattr(os, "posix_fadvise"))
ctypes.CDLL(None)
"""
    result = run_python("-c", MACOS + code)
    assert result.stdout == "False False\n"
    assert "a call into the C library" in result.stderr


def test_help_on_macos_is_that_on_linux() -> None:
    result = run_on_macos("--help")
    assert result.returncode == 0, result.stderr
    assert "translate" in result.stdout


def test_a_run_on_macos_trains_translates_and_evaluates(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    config, run = small_yaml(tmp_path), tmp_path / "run"
    # The blocks are smaller than the corpus, because only then is the system asked to read ahead.
    options = [f"cache_dir={tmp_path}/cache", "batching.block_size=100"]
    trained = run_on_macos("train", config, *options)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    translated = run_on_macos("translate", run, sample / "test.de", "-o", tmp_path / "hyp")
    assert translated.returncode == 0, translated.stderr
    assert (tmp_path / "hyp").read_bytes().count(b"\n") == 20
    evaluated = run_on_macos("evaluate", run)
    assert evaluated.returncode == 0, evaluated.stderr
    assert list(run.glob("evaluations/*/scorecard.json"))
    refused = run_on_macos("translate", run, sample / "test.de", "--workers", "2")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "under Linux" in refused.stderr


def test_a_plan_on_macos_counts_its_memory(small_yaml: Callable[..., Path], tmp_path: Path) -> None:
    result = run_on_macos("train", small_yaml(tmp_path), "--plan", f"cache_dir={tmp_path}/cache")
    assert result.returncode == 0, result.stderr
    assert "Memory at the peak" in result.stdout
