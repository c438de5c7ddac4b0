"""Going on from each of 50 updates: every later loss, gradient norm and weight is that of the run
that never stopped.
"""

import os
from pathlib import Path

from survival.harness import learned, metrics, reference, train, write_config

TITLE = "resume at each update: the same losses and weights"
STEPS = 52
SETTINGS = {
    "dropout": ("model.dropout=0.1", "train.label_smoothing=0.1", "train.max_bad_updates=2"),
    "accumulation": ("train.grad_accum_steps=3", "batching.max_tokens=256"),
    "bf16": ("precision=bf16", "train.deterministic=true"),
}
COMMON = (
    f"train.max_steps={STEPS}",
    "train.save_every=1",
    "train.valid_every=25",
    "train.keep_last=60",
)
EXACT = ("loss", "nll", "grad_norm", "lr", "update_tokens")


def cases(full: bool) -> list[str]:
    """50 updates of three settings."""
    steps = range(1, 51) if full else (1, 25, 50)
    return [f"{name} {step}" for name in SETTINGS for step in steps]


def run(case: str, folder: Path) -> str:
    """Give a new run folder one checkpoint of the straight run, and go on from it."""
    name, number = case.split()
    step, options = int(number), (*COMMON, *SETTINGS[name])
    straight = reference(folder, name, *options)
    config = write_config(folder)
    source, target = (run / f"checkpoints/step_{step:08d}" for run in (straight, folder / "run"))
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target / path.relative_to(source))
    if code := train(config, *options):
        return f"going on exited with {code}"
    ours, theirs = metrics(folder / "run"), metrics(straight)
    if sorted(ours) != list(range(step + 1, STEPS + 1)):
        return f"updates {sorted(ours)[:3]}... after {step}"
    for number_, line in ours.items():
        for key in EXACT:
            if line[key] != theirs[number_][key]:
                return f"update {number_}: {key} {line[key]!r}, straight {theirs[number_][key]!r}"
    return "" if learned(folder / "run", STEPS) == learned(straight, STEPS) else "other weights"
