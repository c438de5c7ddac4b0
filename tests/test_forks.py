"""Neither mt nor its scripts and tests ever fork a process that has run a computation."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest
from survival import warm

from tests.conftest import ROOT, run_mt
from tests.imports import computing_imports

TEMPLATE = ROOT / "mt/runtime/template.py"
FORKS = {"os.fork", "os.forkpty", "pty.fork", "pty.spawn"}
MAY_FORK = {
    "Process",
    "Pool",
    "ProcessPoolExecutor",
    "get_context",
    "set_start_method",
    "start_processes",
}
FILES = sorted(
    {path for room in ("mt", "scripts", "tests") for path in (ROOT / room).rglob("*.py")}
    - {TEMPLATE}
)


def forks(source: str) -> list[str]:
    """Return the calls and imports in `source` that fork a process or may do so."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            names += [name] if name in FORKS or name.split(".")[-1] in MAY_FORK else []
            names += ["preexec_fn" for keyword in node.keywords if keyword.arg == "preexec_fn"]
        elif isinstance(node, ast.ImportFrom) and node.module in ("os", "pty"):
            names += [
                f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in FORKS
            ]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_template_forks(path: Path) -> None:
    assert forks(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "os.fork()",
        "pty.fork()",
        "from os import fork",
        "multiprocessing.get_context('fork')",
        "ProcessPoolExecutor(2)",
        "subprocess.Popen(a, preexec_fn=f)",
    ],
)
def test_the_search_for_forks_detects(line: str) -> None:
    assert forks(line)


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def test_the_warm_process_still_has_one_thread_after_forking(trained_run: Path) -> None:
    assert run_mt("translate", trained_run, stdin="Der Hund\n").returncode == 0
    pid = warm.template().pid
    assert threads_of(pid) == 1


def test_commands_in_tests_are_children_of_the_warm_process(
    tmp_path: Path,
) -> None:
    said = tmp_path / "said"

    def tell() -> None:
        parent = os.getppid()
        print(parent, len(os.listdir(f"/proc/{parent}/task")))

    assert warm.start(tell, [os.devnull, said, said]).wait() == 0
    assert said.read_text().split() == [str(warm.template().pid), "1"]
    assert warm.template().pid != os.getpid()


def test_importing_what_the_warm_process_imports_computes_nothing() -> None:
    assert computing_imports(warm.MODULES) == []


WAYS_TO_END: dict[str, tuple[Any, int]] = {
    "returns": (lambda: None, 0),
    "exits 3": (lambda: exit(3), 3),
    "exits with a message": (lambda: exit("no"), 1),
    "raises": (lambda: 1 / 0, 1),
    "is killed": (lambda: os.kill(os.getpid(), 9), -9),
}


@pytest.mark.parametrize("way", WAYS_TO_END)
def test_the_exit_code_of_a_child_follows_from_how_its_function_ends(
    way: str, tmp_path: Path
) -> None:
    function, code = WAYS_TO_END[way]
    said = tmp_path / "said"
    assert warm.start(function, [os.devnull, os.devnull, said]).wait() == code
    assert ("ZeroDivisionError" in said.read_text()) == (way == "raises")


def test_a_child_has_the_files_folder_and_variables_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("hello")
    files = [tmp_path / name for name in ("in", "out", "err")]

    def tell() -> None:
        import sys

        print(sys.stdin.read(), os.getcwd(), os.environ["MARK"], "HOME" in os.environ)
        print("problem", file=sys.stderr)

    child = warm.start(tell, files, cwd=tmp_path, environment={"MARK": 7})
    assert child.wait() == 0
    assert files[1].read_text() == f"hello {tmp_path} 7 True\n"
    assert files[2].read_text() == "problem\n"


def test_a_child_can_be_killed_at_any_time_and_again(tmp_path: Path) -> None:
    def sleep() -> None:
        import time

        time.sleep(60)

    child = warm.start(sleep, [os.devnull] * 3)
    child.kill()
    child.kill()
    assert child.wait() == -9
    done = warm.start(lambda: None, [os.devnull] * 3)
    while Path(f"/proc/{done.pid}").exists():
        pass
    done.kill()
    assert done.wait() == 0


def test_each_of_many_children_has_its_own_exit_code() -> None:
    children = [
        warm.start(lambda number=number: exit(number), [os.devnull] * 3) for number in range(20)
    ]
    assert [child.wait() for child in children] == list(range(20))
