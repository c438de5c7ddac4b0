"""The survival campaign: real runs killed, signalled, raced, cut off from the disk and fed with
damaged files.

Usage: python scripts/campaign.py [PROMISE ...] [--full] [--folder DIR] [--jobs 2]

Prints a table of promise, tries and kept, and exits 1 where one was not kept. Results are appended
to DIR/results.jsonl as they come, and cases that stand there are not tried again: the same command
goes on after an interruption. What a failed case left stays in DIR.
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

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many cases as cores run at a time

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
    """Run what has not been run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "promises",
        nargs="*",
        metavar="PROMISE",
        help=f"of {', '.join(PROMISES)}; all where none is given",
    )
    parser.add_argument(
        "--full", action="store_true", help="every try of the published table; a sample otherwise"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=None,
        help="where runs and results go (default: a temporary folder)",
    )
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="cases at the same time"
    )
    args = parser.parse_args()
    if unknown := set(args.promises) - set(PROMISES):
        parser.error(f"no such promise: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.folder or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        failed = campaign(folder, args.promises or PROMISES, args.full, args.jobs)
    sys.exit(failed > 0)


def campaign(folder: Path, promises: tuple[str, ...] | list[str], full: bool, jobs: int) -> int:
    """Run the cases of `promises`, print the table, and give the number that were not kept."""
    results, began = folder / "results.jsonl", time.perf_counter()
    code = fingerprint_of_code()
    done = read_results(results, code)
    reference_run = folder / "warm"
    write_config(reference_run)
    reference(reference_run, "plain")
    modules = {name: importlib.import_module(f"survival.{name}") for name in promises}
    todo = [
        (name, case)
        for name, module in modules.items()
        for case in module.cases(full)
        if (name, case) not in done
    ]
    for number, (name, case, problem) in enumerate(outcomes(folder, modules, todo, jobs), 1):
        with results.open("a") as file:
            file.write(
                json.dumps({"code": code, "promise": name, "case": case, "problem": problem}) + "\n"
            )
        done[name, case] = problem
        if problem:
            print(f"NOT KEPT  {name}: {case}: {problem}", flush=True)
        if number % 50 == 0:
            print(
                f"{number:,} of {len(todo):,} cases after {time.perf_counter() - began:,.0f} s",
                file=sys.stderr,
                flush=True,
            )
    table = Table("promise", "tries", "kept")
    failed = 0
    for name, module in modules.items():
        problems = [done[name, case] for case in module.cases(full)]
        failed += sum(map(bool, problems))
        table.add_row(module.TITLE, f"{len(problems):,}", f"{problems.count(''):,}")
    Console().print(table)
    return failed


def fingerprint_of_code() -> str:
    """Names what is being tried: results of other code do not count."""
    files = sorted({*(ROOT / "mt").rglob("*.py"), *(ROOT / "tests/survival").rglob("*.py")})
    return fingerprint([path.read_text(encoding="utf-8") for path in files])


def read_results(path: Path, code: str) -> dict[tuple[str, str], str]:
    """What stands there from an earlier start with the same code; the file is left with whole lines
    only.
    """
    lines = (
        [line for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )
    path.write_text("".join(f"{line}\n" for line in lines))
    results = [json.loads(line) for line in lines]
    if any(result["code"] != code for result in results):
        raise SystemExit(f"{path}: results of other code; choose another folder")
    return {(result["promise"], result["case"]): result["problem"] for result in results}


def outcomes(
    folder: Path, modules: dict[str, ModuleType], todo: list[tuple[str, str]], jobs: int
) -> Iterator[tuple[str, str, str]]:
    """(promise, case, what was not kept) of each case, `jobs` at a time.

    Threads are enough: what a case tries happens in children of a warm process.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        cases = {
            pool.submit(outcome, modules[name], case, folder / f"{name}-{number}"): (name, case)
            for number, (name, case) in enumerate(todo)
        }
        for ended in as_completed(cases):
            yield *cases[ended], ended.result()
    finally:
        pool.shutdown(cancel_futures=True)


def outcome(module: ModuleType, case: str, place: Path) -> str:
    """What was not kept of one case, which has the folder `place` to itself."""
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
