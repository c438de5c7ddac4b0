"""The plan matches the training run that follows: parameters add up, activations are what autograd
saves, and the peak memory is that of a real update.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt.config import Config, load_config
from mt.data.batch import empty_batch
from mt.data.order import Position, TrainLoader
from mt.data.prepare import prepare
from mt.model.transformer import Transformer, build_model
from mt.runs.footprint import micro_batch_memory, plan_memory, process_memory
from mt.runs.plan import parameters_by_block, plan_corpus
from mt.runtime.device import Compute
from mt.runtime.environment import SETTINGS
from mt.train.objective import loss_sums
from tests.conftest import ROOT, run_mt

CPU = Compute(torch.device("cpu"), torch.float32)
SIZES = (300, 300)  # of the source and target vocabularies
REAL = """
import re, sys
from mt.config import load_config
from mt.runs.start import train
train(load_config(sys.argv[1], sys.argv[2:]))
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
PLAN = """
import sys
from mt.config import load_config
from mt.runs import plan
plan.time_text = lambda *_: ""
print(plan.plan(load_config(sys.argv[1], sys.argv[2:])))
"""


@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
def test_parameters_by_block_add_up_to_those_of_the_model(
    small_yaml: Callable[..., Path], tmp_path: Path, tie: str
) -> None:
    config = load_config(small_yaml(tmp_path), [f"model.tie_embeddings={tie}"])
    model = Transformer(config.model, 300, 300)
    counts = parameters_by_block(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["source embedding"] == 300 * 32
    assert (counts["target embedding"] > 0, counts["output projection"] > 0) == (
        tie != "all",
        tie == "none",
    )


def small_model(config: Config) -> Transformer:
    model = build_model(config.model, *SIZES, config.seed).train()
    model.recompute(config.train.gradient_checkpointing)
    return model


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("tie", ["all", "decoder"])
def test_activations_are_exactly_what_autograd_saves(
    small_yaml: Callable[..., Path], tmp_path: Path, norm: str, tie: str
) -> None:
    """The reference is a real forward pass that reports each tensor saved for backward."""
    options = (f"model.norm={norm}", f"model.tie_embeddings={tie}", "model.activation_dropout=0.1")
    config = load_config(small_yaml(tmp_path), options)
    model = small_model(config)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = empty_batch((16, 24, 20), CPU.device, packed=False)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        hidden = model(batch.src, batch.src_mask, batch.tgt_in)  # type: ignore[union-attr]
    position_tables = 256 * config.model.d_model * 4 * (1 if tie == "all" else 2)
    memory = micro_batch_memory(config, SIZES, (16, 24, 20), CPU, repeat=False)
    assert memory["activations"] == sum(saved.values()) + position_tables
    del hidden


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_peak_of_a_micro_batch_is_what_a_real_one_allocates(
    small_yaml: Callable[..., Path], tmp_path: Path, checkpointing: str, repeat: bool
) -> None:
    """The reference is the CPU allocator: the profiler reports each allocation and release."""
    options = [f"train.gradient_checkpointing={checkpointing}"]
    config = load_config(small_yaml(tmp_path), options)
    model, batch = small_model(config), empty_batch((16, 24, 20), CPU.device, packed=False)
    in_use = peak = 0
    for _ in range(1 + repeat):
        with torch.profiler.profile(profile_memory=True) as profiler:
            loss_sums(model, batch, config.train.label_smoothing).smoothed.backward()
        events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        changes = [event for event in events if event.name() == "[memory]"]
        peak = in_use
        for change in sorted(changes, key=lambda event: event.start_ns()):
            in_use += change.nbytes()
            peak = max(peak, in_use)
    memory = micro_batch_memory(config, SIZES, (16, 24, 20), CPU, repeat)
    # Kernels allocate some scratch memory of their own, which fake tensors do not show.
    assert 0.98 * peak <= memory.total() <= peak


def test_gradient_checkpointing_keeps_fewer_activations_and_old_gradients_count(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = load_config(small_yaml(tmp_path))
    recomputing = load_config(small_yaml(tmp_path), ["train.gradient_checkpointing=true"])
    shape = (32, 30, 30)
    first = micro_batch_memory(config, SIZES, shape, CPU, repeat=False)
    second = micro_batch_memory(config, SIZES, shape, CPU, repeat=True)
    recomputed = micro_batch_memory(recomputing, SIZES, shape, CPU, repeat=False)
    assert recomputed["activations"] < first["activations"] / 2
    trained = (p for p in Transformer(config.model, *SIZES).parameters() if p.requires_grad)
    gradients = 4 * sum(p.numel() for p in trained)
    assert second["gradients"] == gradients
    assert second.total() == pytest.approx(first.total() + gradients - first["gradients"], rel=0.1)


def test_an_epoch_is_counted_as_the_loader_hands_it_out(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = load_config(small_yaml(tmp_path))
    loader = TrainLoader(prepare(config).train, config.batching, config.seed, grad_accum_steps=2)
    corpus = plan_corpus(loader)
    shapes, tokens, updates = [], 0, 0
    for update in loader.updates():
        updates, tokens = updates + 1, tokens + update.num_tokens
        shapes += [
            (len(batch.src), batch.src.shape[1], batch.tgt_in.shape[1])
            for batch in update.micro_batches
        ]  # type: ignore[union-attr]
        if loader.position.epoch:
            break
    assert loader.position == Position(1)
    assert (corpus.tgt_tokens, corpus.updates, corpus.shapes.tolist()) == (
        tokens,
        updates,
        [list(shape) for shape in shapes],
    )
    assert [sum(row[side] for row in corpus.histogram) for side in (1, 2)] == [corpus.pairs] * 2
    assert 0 < corpus.padding < 0.3


def test_the_worst_micro_batch_is_the_one_with_the_largest_peak(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = load_config(small_yaml(tmp_path))
    corpus = plan_corpus(TrainLoader(prepare(config).train, config.batching, config.seed))
    memory = plan_memory(config, (500, 500), corpus.shapes, corpus.micro_batches, CPU, process=0)
    peaks = [
        micro_batch_memory(config, (500, 500), tuple(shape), CPU, repeat=False).total()
        for shape in corpus.shapes[:8].tolist()
    ]
    assert micro_batch_memory(
        config, (500, 500), memory.shape, CPU, repeat=False
    ).total() >= 0.97 * max(peaks)


def test_the_process_itself_is_measured(small_yaml: Callable[..., Path], tmp_path: Path) -> None:
    assert 100 << 20 < process_memory(load_config(small_yaml(tmp_path)), CPU) < 4 << 30


def test_the_command_prints_all_parts_and_leaves_no_run_folder(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    result = run_mt("train", small_yaml(tmp_path), "--plan")
    assert result.returncode == 0, result.stderr
    for part in (
        "Parameters",
        "Memory at the peak",
        "activations",
        "Python and libraries",
        "One epoch",
        "padding",
        "target tokens/s",
        "12 updates",
    ):
        assert part in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_configuration_still_exits_2(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    result = run_mt("train", small_yaml(tmp_path), "model.num_heads=7", "--plan")
    assert (result.returncode, result.stdout) == (2, "")
    assert "does not divide" in result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_is_within_15_percent_of_a_real_training(precision: str, tmp_path: Path) -> None:
    import os
    import subprocess

    env = {**os.environ, **SETTINGS}  # the `mt` command sets these variables too
    options = (
        str(ROOT / "configs/quickstart.yaml"),
        f"run_dir={tmp_path}/run",
        f"cache_dir={tmp_path}/cache",
        "data.valid=[]",
        "device=cpu",
        f"precision={precision}",
        "model.d_model=192",
        "batching.max_tokens=4096",
        "train.max_steps=30",
    )
    prepared = run_mt("prepare", options[0], *options[1:])
    assert prepared.returncode == 0, prepared.stderr
    outputs = []
    for code in (PLAN, REAL):
        result = subprocess.run(
            [sys.executable, "-c", code, *options],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    planned = float(
        next(line for line in outputs[0].split("\n") if line.startswith("  peak"))
        .split()[1]
        .replace(",", "")
    )
    real = int(outputs[1].split()[-1]) / 1024
    assert planned == pytest.approx(real, rel=0.15)
    assert real > 600  # Python and the libraries alone take about 340
