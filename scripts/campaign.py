"""The survival campaign: check that real runs survive kills, signals, full disks and damaged files.

Usage: python scripts/campaign.py [PROMISE ...] [--full] [--folder DIR] [--jobs 2]

Each promise is tried in many cases. The script prints a table that shows, for each promise, the
number of tries and how many of them kept the promise. It exits with code 1 if any case failed. Each
result is appended to DIR/results.jsonl immediately. Cases that already have a result there are not
repeated, so the same command resumes after an interruption. The files of failed cases stay in DIR.
"""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")  # cases run in parallel, one per core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from rich.console import Console
from rich.table import Table
from survival.harness import ROOT, reference, write_config

from mt.files import fingerprint

PROMISES = (
    "kills",
    "resume",
    "damage",
    "signals",
    "numbers",
    "disk",
    "races",
    "hostile",
    "ranks",
    "spot",
)


def main() -> None:
    """Run the cases that have no result yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "promises",
        nargs="*",
        metavar="PROMISE",
        help=f"any of {', '.join(PROMISES)} (default: all)",
    )
    parser.add_argument(
        "--full", action="store_true", help="all cases in the published table (default: a sample)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="the folder for runs and results (default: a temporary one)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="number of cases to run at the same time",
    )
    args = parser.parse_args()
    if unknown := set(args.promises) - set(PROMISES):
        parser.error(f"unknown promise: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        failed = campaign(folder, args.promises or PROMISES, args.full, args.jobs)
    sys.exit(failed > 0)


def campaign(folder: Path, promises: tuple[str, ...] | list[str], full: bool, jobs: int) -> int:
    """Run the cases of `promises`, print the table, and return the number of failed cases."""
    results, start = folder / "results.jsonl", time.perf_counter()
    code = code_fingerprint()
    problems = read_results(results, code)
    reference_run = folder / "warm"
    write_config(reference_run)
    reference(reference_run, "plain")
    modules = {name: importlib.import_module(f"survival.{name}") for name in promises}
    todo = [
        (name, case)
        for name, module in modules.items()
        for case in module.cases(full)
        if (name, case) not in problems
    ]
    for number, (name, case, problem) in enumerate(outcomes(folder, modules, todo, jobs), 1):
        result = {"code": code, "promise": name, "case": case, "problem": problem}
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        problems[name, case] = problem
        if problem:
            print(f"NOT KEPT  {name}: {case}: {problem}", flush=True)
        if number % 50 == 0:
            seconds = time.perf_counter() - start
            progress = f"{number:,} of {len(todo):,} cases after {seconds:,.0f} s"
            print(progress, file=sys.stderr, flush=True)
    table = Table("promise", "tries", "kept")
    num_failed = 0
    for name, module in modules.items():
        tried = [problems[name, case] for case in module.cases(full)]
        num_failed += sum(map(bool, tried))
        table.add_row(module.TITLE, f"{len(tried):,}", f"{tried.count(''):,}")
    Console().print(table)
    return num_failed


def code_fingerprint() -> str:
    """Return a hash of the code under test. Results from other code do not count."""
    files = sorted({*(ROOT / "mt").rglob("*.py"), *(ROOT / "tests/survival").rglob("*.py")})
    return fingerprint([path.read_text(encoding="utf-8") for path in files])


def read_results(path: Path, code: str) -> dict[tuple[str, str], str]:
    """Map each (promise, case) that an earlier run of the campaign has finished to its problem.

    An incomplete last line is removed from the file. Exits if the results are from other code.
    """
    lines = (
        [line for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    results = [json.loads(line) for line in lines]
    if any(result["code"] != code for result in results):
        raise SystemExit(f"{path}: these results are from other code; choose another folder")
    return {(result["promise"], result["case"]): result["problem"] for result in results}


def outcomes(
    folder: Path, modules: dict[str, ModuleType], todo: list[tuple[str, str]], jobs: int
) -> Iterator[tuple[str, str, str]]:
    """Run the cases, `jobs` at a time, and yield (promise, case, problem) for each.

    Threads are enough, because each case does its work in child processes.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        cases = {
            pool.submit(outcome, modules[name], case, folder / f"{name}-{number}"): (name, case)
            for number, (name, case) in enumerate(todo)
        }
        for future in as_completed(cases):
            yield *cases[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def outcome(module: ModuleType, case: str, place: Path) -> str:
    """Run a case in the empty folder `place`. Returns how it broke its promise, or "" if kept."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        problem: str = module.run(case, place)
    except Exception:
        return f"the case itself failed: {traceback.format_exc()[-500:]}"
    if not problem:
        shutil.rmtree(place)
    return problem


if __name__ == "__main__":
    main()
