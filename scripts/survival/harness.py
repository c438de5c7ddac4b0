"""Small runs of the real command in children of one warm process, so that starting one costs no import of PyTorch.

The parent must stay single-threaded: a fork takes only the calling thread along.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
from safetensors.torch import load_file

import mt.train.run
import mt.workflows.inspect  # noqa: F401  warmed for every child
from mt.cli import main

with contextlib.suppress(ImportError):
    import torch.utils.tensorboard

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent.parent
PAIRS = {"train": 300, "valid": 12, "test": 12}
STEPS = 30

CONFIG = """
run_dir: {folder}/run
cache_dir: {cache}
device: cpu
threads: 1
data:
  train: [{{src: {text}/train.de, tgt: {text}/train.en}}]
  valid: [{{src: {text}/valid.de, tgt: {text}/valid.en}}]
tokenizer: {{vocab_size: 400}}
model: {{preset: tiny, d_model: 32, d_ff: 64, num_heads: 2, encoder_layers: 1, decoder_layers: 1, dropout: 0.1, attention_dropout: 0.1}}
batching: {{max_tokens: 512}}
optim: {{lr: 1e-3, warmup_steps: 5}}
train: {{max_steps: {steps}, ema_decay: 0.9, valid_every: 10, save_every: 4, log_every: 1, keep_last: 2}}
valid: {{max_sentences: 4, samples: 0}}
decode: {{max_len_b: 5}}
"""


def write_config(folder: Path, *, cache: Path | None = None) -> Path:
    """The configuration of a small run in `folder`; the text and the cache are shared by all beside it."""
    shared = folder.parent / "shared"
    text = shared / "text"
    if not text.exists():
        made = shared / f"text.{os.getpid()}"
        made.mkdir(parents=True)
        for split, count in PAIRS.items():
            for language in ("de", "en"):
                lines = (ROOT / f"data/sample/{split}.{language}").read_text(encoding="utf-8").split("\n")[:count]
                (made / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # another was first
            made.rename(text)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(CONFIG.format(folder=folder, cache=cache or shared / "cache", text=text, steps=STEPS), encoding="utf-8")
    return path


def start(function: Callable[[], Any], log: Path) -> int:
    """Run `function` in a forked child, its output into `log`; gives the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    """Wait for a child; its exit status, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def command(*args: Any, before: Callable[[], Any] | None = None) -> Callable[[], None]:
    """The real `mt` command as a function for `start`; `before` prepares the child."""

    def run() -> None:
        if before is not None:
            before()
        sys.argv = ["mt", *map(str, args)]
        main()

    return run


def train(config: Path, *overrides: str, before: Callable[[], Any] | None = None) -> int:
    """`mt train` in a child, to its end."""
    return finish(start(command("train", config, *overrides, before=before), config.parent / "log.txt"))


def reference(folder: Path, name: str, *overrides: str) -> Path:
    """The run folder of an uninterrupted run with these overrides, made once."""
    place = folder.parent / f"reference-{name}"
    if not (place / "done").exists():
        made = folder.parent / f"reference-{name}.{os.getpid()}"
        began = time.perf_counter()
        code = train(write_config(made), *overrides)
        assert code == 0, (made / "log.txt").read_text()
        (made / "done").write_text(str(time.perf_counter() - began))
        with contextlib.suppress(OSError):
            made.rename(place)
    return place / "run"


def learned(run: Path, step: int = STEPS) -> dict[str, str]:
    """SHA-256 of all that a run has learned, by file and tensor; the order of a file's header is the library's, and random."""
    files = (run / f"checkpoints/step_{step:08d}").rglob("*.safetensors")
    tensors = ((path.name, name, tensor) for path in files for name, tensor in load_file(path).items())
    return {f"{file} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for file, name, tensor in tensors}


def metrics(run: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by update. An update that stands twice raises."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == kind:
            assert line["step"] not in found, f"update {line['step']} stands twice in metrics.jsonl"
            found[line["step"]] = line
    return found


def same_end(run: Path, straight: Path, step: int = STEPS) -> str:
    """What differs between the ends of two runs, or nothing."""
    try:
        if learned(run, step) != learned(straight, step):
            return "other weights than without interruption"
        if sorted(metrics(run)) != list(range(1, step + 1)) or metrics(run, "valid").keys() != metrics(straight, "valid").keys():
            return "metrics.jsonl has not each update and validation once"
        if left(run) != left(straight):
            return f"{left(run)} in place of {left(straight)}"
    except (OSError, AssertionError) as error:
        return str(error)
    return ""


def left(run: Path) -> dict[str, str]:
    """Checkpoints and links that a run leaves, and the scores of its validations; nothing half written may be among them."""
    found = {path.name: str(path.readlink()) if path.is_symlink() else "" for path in (run / "checkpoints").iterdir()}
    found |= {path.parent.name: path.read_text() for path in run.glob("valid/*/scores.json")}
    return found | {path.name: "half written" for path in run.rglob(".*.tmp")}
