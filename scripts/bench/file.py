"""Compare `mt translate` with CTranslate2 on a long file: lines per second, and memory over time.

Usage: python scripts/bench/file.py MODEL SOURCE [--lines 100000] [--beam-size 5] [--batch-size 128]
           [--engines mt-fp32,ct2-float32,ct2-float32-default] [--log FOLDER]

SOURCE is repeated until it has as many lines as --lines says. Each engine runs in a separate
process that reads and writes text files, so loading and tokenizing are timed too. ct2-TYPE uses one
translator per core, and ct2-TYPE-default lets CTranslate2 choose its threads. Both get all lines in
one call to CTranslate2's Python interface. Memory is the proportional set size of the process and
its children, measured once per second. The script prints the peak memory in the second tenth and in
the last tenth of the time. The exit code is 1 if mt's memory grew by more than 10 % between the
two. mt runs in a terminal of its own, so that it draws its progress bar; the output goes to
ENGINE.log in the --log folder.
"""

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mt.convert.ctranslate2 import CTranslate2Engine, export_ctranslate2
from mt.data.sources import read_text
from mt.decode.loading import load_model
from mt.decode.search import max_output_len

GROWTH = 1.1  # limit for the peak in the last tenth of the time, relative to the second tenth


def ct2_translate(args: argparse.Namespace, engine: str, folder: Path) -> None:
    """Read, tokenize, translate in one call, detokenize and write, all with CTranslate2."""
    compute_type, _, threads = engine.removeprefix("ct2-").partition("-")
    loaded = load_model(Path(args.model), torch.device("cpu"))
    decode = loaded.config.decode.model_copy(
        update={"beam_size": args.beam_size, "batch_size": args.batch_size}
    )
    ways = (1, 0) if threads == "default" else (len(os.sched_getaffinity(0)), 1)
    ct2 = CTranslate2Engine(folder / "ct2", loaded.tokenizer, decode, *ways, compute_type)
    limit = max_output_len(decode.longest_src, decode.max_len_a, decode.max_len_b)
    hyps = ct2.translate_batch(loaded.tokenizer.encode_src(read_text(folder / "source")), limit)
    (folder / engine).write_text(
        "".join(f"{loaded.tokenizer.decode_tgt(tokens)}\n" for tokens, _ in hyps), encoding="utf-8"
    )


def memory(pid: int) -> float:
    """Return the memory of a process and its descendants in MiB. Shared pages count once."""
    total, pids = 0, [pid]
    while pids:
        process = Path(f"/proc/{pids.pop()}")
        try:
            total += next(
                int(line.split()[1])
                for line in (process / "smaps_rollup").read_text().splitlines()
                if line.startswith("Pss:")
            )
            for thread in (process / "task").iterdir():
                pids += map(int, (thread / "children").read_text().split())
        except (OSError, StopIteration):  # the process has just exited
            continue
    return total / 1024


def watch(command: list[str]) -> tuple[float, list[float]]:
    """Run a command, and return its duration in seconds and its memory in each second."""
    start, samples = time.perf_counter(), []
    with subprocess.Popen(command) as process:
        while True:
            try:
                process.wait(1)
                break
            except subprocess.TimeoutExpired:
                samples.append(memory(process.pid))
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed")
    return time.perf_counter() - start, samples


def main() -> None:
    """Run the engines one after another, and print the speed and memory of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--engines", default="mt-fp32,ct2-float32,ct2-float32-default")
    parser.add_argument("--log", type=Path, default=Path("."))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        ct2_translate(args, args.child[0], Path(args.child[1]))
        return
    has_grown = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = itertools.islice(itertools.cycle(read_text(args.source)), args.lines)
        (folder / "source").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        export_ctranslate2(load_model(Path(args.model), torch.device("cpu")), folder / "ct2")
        for engine in args.engines.split(","):
            seconds, samples = watch(command(args, engine, name))
            translated = len((folder / engine).read_text(encoding="utf-8").splitlines())
            tenth = len(samples) // 10
            early, late = max(samples[tenth : 2 * tenth]), max(samples[-tenth:])
            has_grown |= engine.startswith("mt-") and late > GROWTH * early
            print(
                f"{engine}: {translated:,} lines in {seconds:,.1f} s, "
                f"{translated / seconds:,.1f} lines/s; memory was {early:,.0f} MiB in the second "
                f"tenth of the time, {late:,.0f} in the last, and {max(samples):,.0f} at the peak",
                flush=True,
            )
    sys.exit(has_grown)


def command(args: argparse.Namespace, engine: str, folder: str) -> list[str]:
    """Return the command that translates `folder`/source. `script` gives mt a terminal."""
    if not engine.startswith("mt-"):
        return [sys.executable, *sys.argv, "--child", engine, folder]
    precision = engine.removeprefix("mt-")
    text = (
        f"{sys.executable} -m mt translate {args.model} {folder}/source -o {folder}/{engine} "
        f"--precision={precision} --beam-size={args.beam_size} --batch-size={args.batch_size}"
    )
    log = str(args.log / f"{engine}.log")
    return ["script", "-qec", f"stty rows 30 cols 100; exec {text}", log]


if __name__ == "__main__":
    main()
