"""Model folders and YAML files that were made to do harm, some with a valid manifest.

They must be refused quickly and with little memory, and nothing in them may be executed.
"""

import json
import os
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mt.artifacts import MANIFEST, manifest, seal
from survival.harness import command, reference, start, write_config

TITLE = "hostile files: refused in under 1 s and 100 MB"
SECONDS, BYTES = 1.0, 100_000_000
HUGE = 10**9
EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}  # header entry of an empty tensor


class Payload:
    """An object that creates the file `canary` when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (os.system, (f"touch {self.canary}",))


def tensors(model: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    """Replace the weights of a model with a safetensors file that has this header.

    `length` is the header length that the file claims; by default, the claim is correct.
    """
    size = len(header) if length is None else length
    (model / "model.safetensors").write_bytes(size.to_bytes(8, "little") + header + data)


def change_header(
    model: Path, change: Callable[[dict[str, object], dict[str, object]], object]
) -> None:
    """Call `change` on the header entries of two tensors that have the same shape."""
    data = (model / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:end])
    a, b = (entries[f"encoder.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    change(a, b)
    tensors(model, json.dumps(entries).encode(), data[end:])


def replace(path: Path, old: str, new: str) -> None:
    """Replace the first occurrence of `old` in a text file."""
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new, 1))


def link_out(model: Path) -> None:
    """Move the weights out of the model folder, and put a link to them in their place."""
    outside = model.parent / "outside.safetensors"
    shutil.move(model / "model.safetensors", outside)
    (model / "model.safetensors").symlink_to(outside)


def manifest_name(model: Path, name: str) -> None:
    """Add a file called `name` to the manifest."""
    files = json.loads((model / MANIFEST).read_text())["files"]
    manifest.write_json(
        model / MANIFEST, manifest._manifest({**files, name: {"size": 0, "sha256": "0" * 64}})
    )


# Changes to a model folder before its manifest is written, so that the manifest is valid.
SEALED: dict[str, Callable[[Path], object]] = {
    "pickle as safetensors": lambda m: (m / "model.safetensors").write_bytes(
        pickle.dumps(Payload(m.parent / "canary"))
    ),
    "header of 10^9 bytes": lambda m: tensors(m, b"{}", length=HUGE),
    "header of 50 MB": lambda m: tensors(
        m, json.dumps({f"t{i}": EMPTY for i in range(700_000)}).encode()
    ),
    "overlapping tensors": lambda m: change_header(
        m, lambda a, b: a.update(data_offsets=b["data_offsets"])
    ),
    "tensor of 10^18 values": lambda m: change_header(m, lambda a, b: a.update(shape=[HUGE, HUGE])),
    "python tag in config.yaml": lambda m: replace(
        m / "config.yaml", "seed: 1", "seed: !!python/object/apply:os.system ['touch canary']"
    ),
    "d_model of 10^9": lambda m: replace(m / "config.yaml", "d_model: 32", f"d_model: {HUGE}"),
    "d_model and tensor of 10^9": lambda m: (
        replace(m / "config.yaml", "d_model: 32", f"d_model: {HUGE}"),
        change_header(m, lambda a, b: a.update(shape=[HUGE, HUGE])),
    ),
    "values of the wrong type": lambda m: (m / "provenance.json").write_text(
        '{"step": "x", "scores": [1], "corpora": 7, "loss_scale": {}}'
    ),
    "10^9 layers": lambda m: replace(
        m / "config.yaml", "encoder_layers: 1", f"encoder_layers: {HUGE}"
    ),
    "beam of 10^9": lambda m: replace(
        m / "generation.json", '"beam_size": 5', f'"beam_size": {HUGE}'
    ),
    "JSON 100,000 levels deep": lambda m: (m / "provenance.json").write_text(
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
    ),
    "link out of the folder": link_out,
}
# Changes to a model folder after its manifest has been written.
UNSEALED: dict[str, Callable[[Path], object]] = {
    "../ in the manifest": lambda m: manifest_name(m, "../../outside"),
    "absolute path in the manifest": lambda m: manifest_name(m, "/etc/hostname"),
    "a tokenizer that the manifest does not name": lambda m: shutil.copy(
        m / "config.yaml", m / "tokenizer/src.spm"
    ),
}
YAMLS = {
    "python tag in a configuration": "seed: !!python/object/apply:os.system ['touch canary']\n",
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 10)}]\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
}
LINK = "link `best` out of the run"


def cases(full: bool) -> list[str]:
    """Return all cases."""
    return [*SEALED, *UNSEALED, *YAMLS, LINK]


def run(case: str, folder: Path) -> str:
    """Give the harmful file or folder to the real commands."""
    write_config(folder)
    source = reference(folder, "plain") / "checkpoints/step_00000030"
    if case in YAMLS:
        (folder / "hostile.yaml").write_text(YAMLS[case])
        arguments: tuple[object, ...] = ("train", folder / "hostile.yaml")
    elif case == LINK:
        shutil.copytree(source, folder / "elsewhere")
        (folder / "run/checkpoints").mkdir(parents=True)
        (folder / "run/checkpoints/best").symlink_to("../../elsewhere")
        arguments = ("translate", folder / "run")
    else:
        model = folder / "model"
        shutil.copytree(source, model, ignore=shutil.ignore_patterns("training", MANIFEST))
        SEALED.get(case, lambda m: None)(model)
        (model / "batch.jsonl").write_text(
            '{"micro_batch": 0, "src_ids": [1000000000], "tgt_ids": ["x"]}\n'
        )
        seal(model)
        UNSEALED.get(case, lambda m: None)(model)
        problems = [
            check_refusal((name, model), folder) for name in ("translate", "replay", "inspect")
        ]
        # Only `mt replay` must refuse: the values do no harm in `mt translate` and `mt inspect`.
        if case == "values of the wrong type":
            problems = problems[1:2]
        elif case in (
            "d_model of 10^9",
            "10^9 layers",
            "d_model and tensor of 10^9",
            "overlapping tensors",
            "tensor of 10^18 values",
        ):
            # `mt inspect` does not open the weights, so it may succeed.
            problems = [problem for problem in problems if not problem.startswith("exit 0")]
        return "; ".join(filter(None, problems))
    return check_refusal(arguments, folder)


def check_refusal(arguments: tuple[object, ...], folder: Path) -> str:
    """Run a command that must refuse its input, and return what it did wrong, or ""."""

    def measure() -> None:
        used, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        try:
            command(*arguments, before=partial(os.chdir, folder))()
        finally:
            took = time.perf_counter() - began
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used) * 1024
            (folder / "cost.json").write_text(json.dumps([took, more]))

    code, log = start(measure, folder / "log.txt").wait(), (folder / "log.txt").read_text()
    if code not in (1, 2) or "Traceback" in log:
        return f"exit {code}: {log[-300:]}"
    seconds, more = json.loads((folder / "cost.json").read_text())
    if (folder / "canary").exists():
        return "code in the file was executed"
    return f"{seconds:.2f} s and {more / 1e6:,.0f} MB" if seconds > SECONDS or more > BYTES else ""
