"""Run the real `mt` command on small data, in children of a process that has imported PyTorch."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mt.runtime.template import Child
from survival import warm
from survival.warm import ROOT

PAIRS = {"train": 300, "valid": 12, "test": 12}
STEPS = 30
WAIT = 120.0  # seconds to wait for something before it counts as a failure

_once_lock = threading.RLock()

CONFIG = """
run_dir: {folder}/run
cache_dir: {cache}
device: cpu
threads: 1
data:
  train: [{{src: {text}/train.de, tgt: {text}/train.en}}]
  valid: [{{src: {text}/valid.de, tgt: {text}/valid.en}}]
tokenizer: {{vocab_size: 400, src_normalization: nfkc, user_defined_symbols: ["<tag>"]}}
model:
  {{preset: tiny, d_model: 32, d_ff: 64, num_heads: 2, encoder_layers: 1, decoder_layers: 1,
    dropout: 0.1, attention_dropout: 0.1}}
batching: {{max_tokens: 512}}
optim: {{lr: 1e-3, warmup_steps: 5}}
train:
  {{max_steps: {steps}, ema_decay: 0.9, valid_every: 10, save_every: 4, log_every: 1, keep_last: 2}}
valid: {{max_sentences: 4, samples: 0}}
decode: {{max_len_b: 5, max_sentences: 1}}
"""


def write_config(folder: Path, *, cache: Path | None = None) -> Path:
    """Write the configuration of a small run into `folder`, and return its path.

    The text, and by default the cache, are shared by all runs in the parent of `folder`.
    """
    shared = folder.parent / "shared"
    text = once(shared / "text", _write_text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(
        CONFIG.format(folder=folder, cache=cache or shared / "cache", text=text, steps=STEPS),
        encoding="utf-8",
    )
    return path


def _write_text(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in PAIRS.items():
        for language in ("de", "en"):
            lines = (
                (ROOT / f"data/sample/{split}.{language}")
                .read_text(encoding="utf-8")
                .split("\n")[:count]
            )
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")


def once(place: Path, make: Callable[[Path], object]) -> Path:
    """Return the folder `place`; if it does not exist, first let `make` create it.

    `make` fills a temporary folder, which is then renamed. Only one thread at a time calls `make`.
    If several processes call it, the fastest result is kept.
    """
    with _once_lock:
        if not place.exists():
            temporary = place.with_name(f"{place.name}.{os.getpid()}")
            make(temporary)
            with contextlib.suppress(OSError):
                temporary.rename(place)
    return place


def start(function: Callable[[], Any], log: Path) -> Child:
    """Call `function` in a child of the warm process, and append its output to `log`."""
    return warm.start(function, [os.devnull, log, log])


def command(*args: Any, before: Callable[[], Any] | None = None) -> Callable[[], None]:
    """Return a function for `start` that calls `before` and then runs the real `mt` command."""
    run = warm.command(*args)

    def prepared() -> None:
        if before is not None:
            before()
        run()

    return prepared


def train(config: Path, *overrides: str, before: Callable[[], Any] | None = None) -> int:
    """Run `mt train` in a child until it ends, and return its exit code."""
    log = config.parent / "log.txt"
    return start(command("train", config, *overrides, before=before), log).wait()


def reference(folder: Path, name: str, *overrides: str) -> Path:
    """Return the folder of an undisturbed run with these overrides, which is trained only once."""

    def make(temporary: Path) -> None:
        config, began = write_config(temporary), time.perf_counter()
        code = train(config, *overrides)
        assert code == 0, (temporary / "log.txt").read_text()
        (temporary / "seconds").write_text(str(time.perf_counter() - began))

    return once(folder.parent / f"reference-{name}", make) / "run"


def tensor_hashes(run: Path, step: int = STEPS) -> dict[str, str]:
    """Return the SHA-256 of each tensor in a checkpoint, keyed by file and tensor name.

    Whole files cannot be compared, because the order of the entries in their headers is random.
    """
    files = (run / f"checkpoints/step_{step:08d}").rglob("*.safetensors")
    return {
        f"{path.name} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in files
        for name, tensor in load_file(path).items()
    }


def metrics(run: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """Return the lines of the given kind in metrics.jsonl, keyed by update.

    Fails if an update has two lines.
    """
    lines = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == kind:
            assert line["step"] not in by_step, f"metrics.jsonl repeats update {line['step']}"
            by_step[line["step"]] = line
    return by_step


def same_end(run: Path, undisturbed: Path, step: int = STEPS) -> str:
    """Return how the result of `run` differs from that of the undisturbed run, or ""."""
    try:
        if tensor_hashes(run, step) != tensor_hashes(undisturbed, step):
            return "the weights differ from those of the undisturbed run"
        if (
            sorted(metrics(run)) != list(range(1, step + 1))
            or metrics(run, "valid").keys() != metrics(undisturbed, "valid").keys()
        ):
            return "metrics.jsonl does not have one line for each update and validation"
        if run_outputs(run) != run_outputs(undisturbed):
            return f"{run_outputs(run)} instead of {run_outputs(undisturbed)}"
    except (OSError, AssertionError) as error:
        return str(error)
    return ""


def run_outputs(run: Path) -> dict[str, str]:
    """Return the checkpoints, links, scores and temporary files in a run folder, keyed by name.

    A finished run has no temporary files, so they make it differ from an undisturbed run.
    """
    outputs = {
        path.name: str(path.readlink()) if path.is_symlink() else ""
        for path in (run / "checkpoints").iterdir()
    }
    outputs |= {path.parent.name: path.read_text() for path in run.glob("valid/*/scores.json")}
    return outputs | {path.name: "temporary file" for path in run.rglob(".*.tmp")}


def wait_until(
    condition: Callable[[], bool], problem: str, seconds: float = WAIT, pause: float = 0.005
) -> None:
    """Return once `condition()` is true; after `seconds`, fail with the message `problem`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, problem
        time.sleep(pause)
