"""Small runs of the real command, in children of one warm process that has imported PyTorch."""

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
WAIT = 120.0  # seconds after which something that must come is given up

_making = threading.RLock()

CONFIG = """
run_dir: {folder}/run
cache_dir: {cache}
device: cpu
threads: 1
data:
  train: [{{src: {text}/train.de, tgt: {text}/train.en}}]
  valid: [{{src: {text}/valid.de, tgt: {text}/valid.en}}]
tokenizer: {{vocab_size: 400, src_normalization: nfkc, user_defined_symbols: ["<tag>"]}}
model: {{preset: tiny, d_model: 32, d_ff: 64, num_heads: 2, encoder_layers: 1, decoder_layers: 1, dropout: 0.1, attention_dropout: 0.1}}
batching: {{max_tokens: 512}}
optim: {{lr: 1e-3, warmup_steps: 5}}
train: {{max_steps: {steps}, ema_decay: 0.9, valid_every: 10, save_every: 4, log_every: 1, keep_last: 2}}
valid: {{max_sentences: 4, samples: 0}}
decode: {{max_len_b: 5, max_sentences: 1}}
"""


def write_config(folder: Path, *, cache: Path | None = None) -> Path:
    """The configuration of a small run in `folder`; the text and the cache are shared by all beside
    it.
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
    """`place`, which `make` makes under another name if it is not there.

    Threads wait for one another; of several processes that make it, the fastest has made it.
    """
    with _making:
        if not place.exists():
            made = place.with_name(f"{place.name}.{os.getpid()}")
            make(made)
            with contextlib.suppress(OSError):
                made.rename(place)
    return place


def start(function: Callable[[], Any], log: Path) -> Child:
    """Run `function` in a child of the warm process, its output into `log`."""
    return warm.start(function, [os.devnull, log, log])


def command(*args: Any, before: Callable[[], Any] | None = None) -> Callable[[], None]:
    """The real `mt` command as a function for `start`; `before` prepares the child."""
    run = warm.command(*args)

    def prepared() -> None:
        if before is not None:
            before()
        run()

    return prepared


def train(config: Path, *overrides: str, before: Callable[[], Any] | None = None) -> int:
    """`mt train` in a child, to its end."""
    log = config.parent / "log.txt"
    return start(command("train", config, *overrides, before=before), log).wait()


def reference(folder: Path, name: str, *overrides: str) -> Path:
    """The run folder of an uninterrupted run with these overrides, made once."""

    def make(made: Path) -> None:
        config, began = write_config(made), time.perf_counter()
        code = train(config, *overrides)
        assert code == 0, (made / "log.txt").read_text()
        (made / "seconds").write_text(str(time.perf_counter() - began))

    return once(folder.parent / f"reference-{name}", make) / "run"


def learned(run: Path, step: int = STEPS) -> dict[str, str]:
    """SHA-256 of all that a run has learned, by file and tensor; the order of a file's header is
    the library's, and random.
    """
    files = (run / f"checkpoints/step_{step:08d}").rglob("*.safetensors")
    tensors = (
        (path.name, name, tensor) for path in files for name, tensor in load_file(path).items()
    )
    return {
        f"{file} {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for file, name, tensor in tensors
    }


def metrics(run: Path, kind: str = "train") -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by update. An update that stands twice raises."""
    lines = [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
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
        if (
            sorted(metrics(run)) != list(range(1, step + 1))
            or metrics(run, "valid").keys() != metrics(straight, "valid").keys()
        ):
            return "metrics.jsonl has not each update and validation once"
        if left(run) != left(straight):
            return f"{left(run)} in place of {left(straight)}"
    except (OSError, AssertionError) as error:
        return str(error)
    return ""


def left(run: Path) -> dict[str, str]:
    """Checkpoints and links that a run leaves, and the scores of its validations; nothing half
    written may be among them.
    """
    found = {
        path.name: str(path.readlink()) if path.is_symlink() else ""
        for path in (run / "checkpoints").iterdir()
    }
    found |= {path.parent.name: path.read_text() for path in run.glob("valid/*/scores.json")}
    return found | {path.name: "half written" for path in run.rglob(".*.tmp")}


def until(
    condition: Callable[[], bool], problem: str, seconds: float = WAIT, pause: float = 0.005
) -> None:
    """Return once `condition` holds, which is looked at every `pause` seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, problem
        time.sleep(pause)
