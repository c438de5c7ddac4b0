"""The parts of scripts/gpu.sh: describe the GPU, measure speeds, and run the GPU tests.

Usage: python scripts/bench/gpu.py PART --out FOLDER --scratch FOLDER [--data FOLDER]
           [--device cuda] [--seconds 100]

Parts: environment, train, decode, huggingface, tests, summary. A part runs each measurement in a
separate process, the most important ones first. For each measurement, it adds a line to
results.jsonl with the result, or with the reason why there is none: a failure, or too little time.
`--device cpu` tries out all parts on a CPU with small sizes.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/bench-multi30k.yaml"
TEXTS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}  # Multi30k file names
PACKAGES = ("torch", "triton", "transformers", "numpy", "pydantic", "sentencepiece", "pytest")
LEAST_SECONDS = 10.0  # no measurement is started if less time is left


@dataclass(frozen=True)
class Sizes:
    """The sizes of the measurements on one kind of device."""

    presets: tuple[str, ...]
    overrides: tuple[str, ...]  # overrides of the configuration
    max_tokens: int  # tokens per micro-batch
    updates: int  # updates per training measurement, which is repeated three times
    warmup: int  # updates before the measurement
    learning_steps: int  # updates to train the model that the decoding measurements use
    lines: int  # lines to translate
    batch_sizes: str
    precisions: tuple[str, ...]  # precisions to translate in; the first is also used for training


SIZES = {
    "cuda": Sizes(
        presets=("base", "big"),
        overrides=(),
        max_tokens=25_000,
        updates=20,
        warmup=8,
        learning_steps=150,
        lines=2000,
        batch_sizes="64,512",
        precisions=("bf16", "fp16", "fp32"),
    ),
    "cpu": Sizes(
        presets=("tiny",),
        overrides=("tokenizer.vocab_size=400", "threads=1"),
        max_tokens=512,
        updates=2,
        warmup=1,
        learning_steps=3,
        lines=8,
        batch_sizes="2,4",
        precisions=("fp32",),
    ),
}


class Part:
    """One part, with its folders, its sizes and its deadline."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name, self.device, self.sizes = args.part, args.device, SIZES[args.device]
        self.out, self.scratch, self.data = args.out, args.scratch, args.data
        self.end = time.monotonic() + args.seconds

    def record(self, **line: Any) -> None:
        """Append a line to results.jsonl."""
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.name, **line}) + "\n")

    def config(self, preset: str, *more: str) -> list[str]:
        """Return the arguments that configure the training benchmark for this device."""
        corpora = [
            f"data.{use}=[{{src: {self.data}/{name}.de.gz, tgt: {self.data}/{name}.en.gz}}]"
            for use, name in TEXTS.items()
        ]
        place = [f"device={self.device}", f"precision={self.sizes.precisions[0]}"]
        sizes = [f"model.preset={preset}", f"batching.max_tokens={self.sizes.max_tokens}"]
        cache = f"cache_dir={self.scratch}/cache"
        return [CONFIG, *corpora, *place, *sizes, cache, *self.sizes.overrides, *more]

    def run(self, what: str, *command: Any) -> bool:
        """Run a Python command before the deadline, and return whether it succeeded.

        A failure is recorded as the problem of the measurement `what`.
        """
        left = self.end - time.monotonic()
        if left < LEAST_SECONDS:
            self.record(what=what, problem="skipped: no time left")
            return False
        print(f"-- {what}", flush=True)
        with process_group([sys.executable, *map(str, command)]) as process:
            try:
                code = process.wait(left)
            except subprocess.TimeoutExpired:
                self.record(what=what, problem=f"stopped after {left:.0f} s")
                return False
        if code:
            self.record(what=what, problem=f"exit {code}, see log.txt")
        return code == 0

    def lacks(self, package: str) -> bool:
        """Return whether a package is missing. If it is, record that."""
        is_missing = importlib.util.find_spec(package) is None
        if is_missing:
            self.record(what=package, problem="skipped: the package is missing")
        return is_missing


@contextlib.contextmanager
def process_group(command: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a process. At the end of the block, kill the process and all its descendants."""
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(part: Part) -> None:
    """Write the GPU, its driver, and the versions of all packages to environment.json."""
    import torch

    about: dict[str, Any] = {"gpu": f"none, a trial run on {platform.machine()}"}
    if part.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about = {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": first_line(
                "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
            ),
            "cuda": torch.version.cuda,
        }
    about |= {"python": platform.python_version(), "cpus": os.cpu_count()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            about[package] = version(package)
    about["commit"] = first_line("git", "rev-parse", "--short", "HEAD")
    text = json.dumps(about, indent=2)
    (part.out / "environment.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def first_line(*command: str) -> str:
    """Return the first line of a command's output, or "" if the command does not exist."""
    with contextlib.suppress(OSError):
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return result.stdout.split("\n")[0].strip()
    return ""


def train(part: Part) -> None:
    """Measure the training speed of each preset: compiled, eager, and deterministic."""
    kinds = {
        "compiled": ["train.compile=true"],
        "eager": ["train.compile=false"],
        "deterministic": ["train.compile=false", "train.deterministic=true"],
    }
    ways = [(preset, kind) for preset in part.sizes.presets for kind in ("compiled", "eager")]
    for preset, kind in [*ways, (part.sizes.presets[0], "deterministic")]:
        measure_training(part, f"mt, {kind}", preset, "scripts/bench/train.py", *kinds[kind])


def huggingface(part: Part) -> None:
    """Measure the training speed of Hugging Face's Marian in a plain loop on the same batches."""
    for preset in part.sizes.presets:
        measure_training(part, "Hugging Face, eager", preset, "scripts/bench/hf_loop.py")


def measure_training(part: Part, engine: str, preset: str, script: str, *options: str) -> None:
    """Run `script`, which measures training, and record its result."""
    path, sizes = part.scratch / "measured.json", part.sizes
    counts = ["--updates", sizes.updates, "--warmup", sizes.warmup, "--json", path]
    if part.run(f"{engine}, {preset}", script, *part.config(preset, *options), *counts):
        result = json.loads(path.read_text(encoding="utf-8"))
        part.record(engine=engine, preset=preset, max_tokens=sizes.max_tokens, **result)


def decode(part: Part) -> None:
    """Briefly train a model of the first preset, and measure its decoding speed per precision."""
    sizes, preset, model = part.sizes, part.sizes.presets[0], part.scratch / "model"
    learning = [f"run_dir={model}", f"train.max_steps={sizes.learning_steps}", "data.valid=[]"]
    learning += ["optim.lr=1e-3", "optim.warmup_steps=50", "train.compile=false"]
    if not part.run("learning", "-m", "mt", "train", *part.config(preset, *learning)):
        return
    path = part.scratch / "decoded.json"
    text = [part.data / f"train.{side}.gz" for side in ("de", "en")]
    engines = ["--engines", ",".join(f"mt-{precision}" for precision in sizes.precisions)]
    work = ["--lines", sizes.lines, "--rounds", 1, "--beams", 5, "--batch-sizes", sizes.batch_sizes]
    place = ["--device", part.device, "--json", path]
    part.run("decoding", "scripts/bench/decode.py", model, *text, *engines, *work, *place)
    for line in json.loads(path.read_text(encoding="utf-8")) if path.exists() else []:
        rate = line["tokens"] / line["seconds"]
        part.record(preset=preset, target_tokens_per_second=rate, **line)


def tests(part: Part) -> None:
    """Run the tests marked `gpu`."""
    if part.device == "cpu":
        part.record(what="tests", problem="skipped: there is no GPU")
        return
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [path for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]
    parallel = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    report = part.scratch / "tests.xml"
    options = ["-v", "-p", "no:cacheprovider", "-m", "gpu", f"--junitxml={report}", *parallel]
    part.run("pytest", "-m", "pytest", *options, *files)
    if report.exists():
        suite = report.read_text(encoding="utf-8")
        counts = re.findall(r' (errors|failures|skipped|tests|time)="([\d.]+)"', suite)[:5]
        part.record(what="tests", **{name: float(count) for name, count in counts})


def summary(part: Part) -> None:
    """Write summary.txt from the results of all parts."""
    about, results = {}, []
    with contextlib.suppress(OSError):
        about = json.loads((part.out / "environment.json").read_text(encoding="utf-8"))
    with contextlib.suppress(OSError):
        lines = (part.out / "results.jsonl").read_text(encoding="utf-8").splitlines()
        results = [json.loads(line) for line in lines]
    text = "\n".join(summary_lines(about, results)) + "\n"
    (part.out / "summary.txt").write_text(text, encoding="utf-8")
    print(text)


def summary_lines(about: dict[str, Any], results: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the summary."""
    yield ", ".join(f"{name} {value}" for name, value in about.items()) or "no environment.json"
    measured = [line for line in results if "problem" not in line]
    trained = [line for line in measured if line["part"] in ("train", "huggingface")]
    if trained:
        first = trained[0]
        yield f"\ntraining on {first['compute']}, micro-batches of {first['max_tokens']:,} tokens"
        yield from map(training_line, trained)
    decoded = [line for line in measured if line["part"] == "decode"]
    if decoded:
        count, preset, beam = (decoded[0][name] for name in ("sentences", "preset", "beam"))
        yield f"\ntranslating {count:,} sentences, {preset}, beam {beam}"
        yield from map(decoding_line, decoded)
    for line in (line for line in measured if line["part"] == "tests"):
        failed, skipped = line["failures"] + line["errors"], line["skipped"]
        yield f"\ntests: {line['tests']:.0f} in total, {failed:.0f} failed, {skipped:.0f} skipped"
    problems = [line for line in results if "problem" in line]
    if problems:
        yield "\nproblems"
    for line in problems:
        yield f"  {line['part']}, {line.get('what', 'whole part')}: {line['problem']}"


def training_line(line: dict[str, Any]) -> str:
    """Format the result of one training measurement."""
    runs, peak = line["runs"], line["peak_memory_gib"]
    name = f"  {line['preset']:5} {line['engine']:20}"
    texts = [f"{name} {statistics.median(runs):10,.0f} target tokens/s"]
    texts.append(f"{min(runs):,.0f} to {max(runs):,.0f}")
    if "utilisation" in line:
        texts.append(f"{line['utilisation']:.0%} of the fastest matrix product")
    if peak is not None:
        texts.append(f"{peak:.1f} GiB")
    return ", ".join(texts)


def decoding_line(line: dict[str, Any]) -> str:
    """Format the result of one decoding measurement."""
    sentences, memory = line["sentences"] / line["seconds"], line["peak_mib"] / 1024
    rate = f"{line['target_tokens_per_second']:10,.0f} target tokens/s"
    name = f"  {line['engine']:8} batches of {line['batch']:4}"
    return f"{name} {rate}, {sentences:,.0f} sentences/s, {memory:.1f} GiB"


PARTS = {part.__name__: part for part in (environment, train, decode, huggingface, tests, summary)}
REQUIRED_PACKAGES = {
    "train": ("torch", "pydantic"),
    "decode": ("torch", "pydantic"),
    "huggingface": ("torch", "pydantic", "transformers"),
    "tests": ("torch", "pydantic", "pytest"),
}


def main() -> None:
    """Run one part, unless a package it needs is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT / "data/multi30k")
    parser.add_argument("--device", choices=SIZES, default="cuda")
    parser.add_argument("--seconds", type=float, default=100.0)
    args = parser.parse_args()
    # Turn SIGTERM into an exception, so that `process_group` kills the process it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    part = Part(args)
    if not [package for package in REQUIRED_PACKAGES.get(args.part, ()) if part.lacks(package)]:
        PARTS[args.part](part)


if __name__ == "__main__":
    main()
