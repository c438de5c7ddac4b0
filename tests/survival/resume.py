"""A run that resumes from a checkpoint equals the run that was never interrupted.

This holds for each of 50 updates, and for every later loss, gradient norm and weight.
"""

import os
from pathlib import Path

from survival.harness import metrics, reference, tensor_hashes, train, write_config

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
    """Return updates to resume from for each of three settings: 50 if `full`, else three."""
    steps = range(1, 51) if full else (1, 25, 50)
    return [f"{name} {step}" for name in SETTINGS for step in steps]


def run(case: str, folder: Path) -> str:
    """Put one checkpoint of the uninterrupted run into a new run folder, and resume from it."""
    name, number = case.split()
    step, options = int(number), (*COMMON, *SETTINGS[name])
    uninterrupted = reference(folder, name, *options)
    config = write_config(folder)
    source, target = (
        run / f"checkpoints/step_{step:08d}" for run in (uninterrupted, folder / "run")
    )
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target / path.relative_to(source))
    if code := train(config, *options):
        return f"the resumed run exited with {code}"
    resumed, expected = metrics(folder / "run"), metrics(uninterrupted)
    if sorted(resumed) != list(range(step + 1, STEPS + 1)):
        return f"resuming after update {step} gave updates {sorted(resumed)[:3]}..."
    for update, line in resumed.items():
        for key in EXACT:
            if line[key] != expected[update][key]:
                return f"update {update}: {key} {line[key]!r}, not {expected[update][key]!r}"
    same = tensor_hashes(folder / "run", STEPS) == tensor_hashes(uninterrupted, STEPS)
    return "" if same else "the weights differ"
