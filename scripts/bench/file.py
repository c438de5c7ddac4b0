"""`mt translate` of a long file beside CTranslate2's Python call on the same lines: lines a second,
and memory over time.

Usage: python scripts/bench/file.py MODEL SOURCE [--lines 100000] [--beam-size 5] [--batch-size 128]
           [--engines mt-fp32,ct2-float32,ct2-float32-default] [--log FOLDER]

Each engine is a process of its own, from text to text, loading and tokenization included; SOURCE is
repeated to so many lines. ct2-TYPE is a translator to each core, ct2-TYPE-default leaves threads to
CTranslate2; both get all lines in one call. Memory is the proportional set size of the process and
its children, once a second: its peak in the second tenth of the time, and in the last. Exits 1
where mt's grew by more than a tenth. `mt` draws its progress bar in --log, as it would on a
terminal.
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

GROWTH = 1.1


def ct2_translate(args: argparse.Namespace, engine: str, folder: Path) -> None:
    """CTranslate2's whole job: read, tokenize, translate in one call, join, write."""
    compute_type, _, threads = engine.removeprefix("ct2-").partition("-")
    loaded = load_model(Path(args.model), torch.device("cpu"))
    decode = loaded.config.decode.model_copy(
        update={"beam_size": args.beam_size, "batch_size": args.batch_size}
    )
    ways = (1, 0) if threads == "default" else (len(os.sched_getaffinity(0)), 1)
    ct2 = CTranslate2Engine(folder / "ct2", loaded.tokenizer, decode, *ways, compute_type)
    limit = max_output_len(decode.longest_src, decode.max_len_a, decode.max_len_b)
    found = ct2.translate_batch(loaded.tokenizer.encode_src(read_text(folder / "source")), limit)
    (folder / engine).write_text(
        "".join(f"{loaded.tokenizer.decode_tgt(tokens)}\n" for tokens, _ in found), encoding="utf-8"
    )


def memory(pid: int) -> float:
    """MiB of a process and all its descendants; pages that they share count once."""
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
        except (OSError, StopIteration):  # it has just ended
            continue
    return total / 1024


def watch(command: list[str]) -> tuple[float, list[float]]:
    """Seconds that a command took, and its memory each second."""
    began, samples = time.perf_counter(), []
    with subprocess.Popen(command) as process:
        while True:
            try:
                process.wait(1)
                break
            except subprocess.TimeoutExpired:
                samples.append(memory(process.pid))
    if process.returncode:
        sys.exit(f"{shlex.join(command)} failed")
    return time.perf_counter() - began, samples


def main() -> None:
    """One engine after the other."""
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
    grew = False
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
            grew |= engine.startswith("mt-") and late > GROWTH * early
            print(
                f"{engine}: {translated:,} lines in {seconds:,.1f} s, {translated / seconds:,.1f} lines/s; "
                f"memory {early:,.0f} MiB in the second tenth, {late:,.0f} in the last, peak {max(samples):,.0f}",
                flush=True,
            )
    sys.exit(grew)


def command(args: argparse.Namespace, engine: str, folder: str) -> list[str]:
    """What translates the source in the folder by an engine; ours on a terminal."""
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
