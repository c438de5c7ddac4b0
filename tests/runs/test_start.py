"""Runs and their folders (`mt.artifacts.run_folder`).

An earlier run is overwritten only on request, and nothing is lost when disk space or memory runs
out.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mt.artifacts import seal
from mt.config import HEADER
from tests.conftest import ROOT, run_mt


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run, in the `run_dir` that `small_yaml` writes."""
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_changed_settings_are_refused_and_overwrite_starts_from_scratch(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    (run / "notes.txt").write_text("mine")
    before = (run / "checkpoints/step_00000012/model.safetensors").read_bytes()
    refused = run_mt("train", config, "seed=2")
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
    assert (run / "checkpoints/step_00000012/model.safetensors").read_bytes() == before
    restarted = run_mt("train", config, "seed=2", "--overwrite")
    assert restarted.returncode == 0, restarted.stderr
    assert (run / "checkpoints/step_00000012/model.safetensors").read_bytes() != before
    assert "seed: 2" in (run / "config.yaml").read_text()
    assert (run / "notes.txt").read_text() == "mine"
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert steps[0] == 2


def test_overwrite_replaces_a_run_whose_settings_cannot_be_read(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    settings = run / "config.yaml"
    settings.write_text(settings.read_text() + "no_such_section: {a: 1}\n")
    config = small_yaml(tmp_path)
    assert run_mt("train", config).returncode == 2
    restarted = run_mt("train", config, "seed=2", "--overwrite")
    assert restarted.returncode == 0, restarted.stderr
    assert "no_such_section" not in settings.read_text()


def test_changed_settings_are_refused_even_without_a_checkpoint(
    small_yaml: Callable[..., Path], run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    assert run_mt("train", small_yaml(tmp_path), "seed=2").returncode == 2
    assert run_mt("train", small_yaml(tmp_path)).returncode == 0


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_a_config_yaml_written_by_the_user_is_not_touched(
    options: list[str], small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    mine = tmp_path / "experiment/config.yaml"
    mine.parent.mkdir()
    mine.write_text(small_yaml(tmp_path).read_text())
    text = mine.read_text()
    for name in ("valid", "checkpoints"):
        (mine.parent / name).mkdir()
        (mine.parent / name / "mine.txt").write_text("mine")
    for _ in range(2):
        result = run_mt("train", mine, f"run_dir={mine.parent}", *options)
        assert result.returncode == 2
        assert "another run_dir" in result.stderr
        assert mine.read_text() == text
        assert {path.name for path in mine.parent.rglob("*")} == {
            "config.yaml",
            "valid",
            "checkpoints",
            "mine.txt",
            "lock",
        }


def test_overwrite_deletes_nothing_if_the_folder_is_not_a_run(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "run/valid").mkdir(parents=True)
    (tmp_path / "run/valid/test.de").write_text("mein Text")
    result = run_mt("train", small_yaml(tmp_path), "--overwrite")
    assert result.returncode == 2
    assert "valid, but no config.yaml of a run" in result.stderr
    assert (tmp_path / "run/valid/test.de").read_text() == "mein Text"


def test_overwrite_with_a_mistake_in_the_data_keeps_the_old_run(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    result = run_mt(
        "train",
        small_yaml(tmp_path),
        "data.train=[{src: nowhere.de, tgt: nowhere.en}]",
        "--overwrite",
    )
    assert result.returncode == 2
    assert (run / "checkpoints/last/model.safetensors").exists()
    assert (run / "valid/step_00000012/scores.json").exists()


def test_a_run_stopped_before_its_last_validation_validates_on_resume(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    """The folder looks as if the run had been killed between its last save and last validation."""
    shutil.rmtree(run / "valid/step_00000012")
    lines = [
        line
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"kind": "valid", "step": 12' not in line
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder = run / "checkpoints/step_00000012"
    state = json.loads((folder / "training/state.json").read_text())
    (folder / "training/state.json").write_text(json.dumps({**state, "scores": {}}))
    (folder / "MANIFEST.json").unlink()
    seal(folder)
    (run / "checkpoints/last").unlink()
    again = run_mt("train", small_yaml(tmp_path))
    assert again.returncode == 0, again.stderr
    assert (run / "valid/step_00000012/scores.json").exists()
    assert (run / "checkpoints/last").readlink() == Path("step_00000012")
    steps = [
        json.loads(line)["step"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
        if '"valid"' in line
    ]
    assert steps == [6, 12]
    third = run_mt("train", small_yaml(tmp_path))
    assert "is finished at update 12" in third.stderr


def test_the_config_yaml_of_a_run_resumes_it(run: Path, trained_run: Path) -> None:
    assert (run / "config.yaml").read_text().startswith(HEADER)
    result = run_mt("train", run / "config.yaml", f"run_dir={run}", "train.max_steps=14")
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stderr


def test_a_resumed_run_keeps_its_precision(
    small_yaml: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run moves from a machine without hardware support for bf16 to one with it."""
    config = small_yaml(tmp_path)

    def trained(name: str, native: str, *options: str) -> tuple[str, bytes, str]:
        monkeypatch.setenv("MT_NATIVE_BF16", native)
        result = run_mt("train", config, f"run_dir={tmp_path}/{name}", *options)
        assert result.returncode == 0, result.stderr
        last = tmp_path / name / "checkpoints/last"
        state = json.loads((last / "training/state.json").read_text())
        assert state["threads"] == 1
        return result.stderr, (last / "model.safetensors").read_bytes(), state["precision"]

    _, uninterrupted, precision = trained("one", "1", "precision=fp32")
    assert precision == "fp32"
    trained("two", "0", "precision=auto", "train.max_steps=8")
    messages, resumed, precision = trained("two", "1", "precision=auto")
    assert precision == "fp32"
    assert [line for line in messages.splitlines() if "since the last start" in line] == [
        "changed since the last start: train.max_steps: 8 -> 12"
    ]
    assert "CPU, 1 threads, fp32" in messages
    assert resumed == uninterrupted
    messages, _, precision = trained("two", "1", "precision=bf16", "train.max_steps=16")
    assert precision == "bf16"
    assert "changed since the last start: precision: fp32 -> bf16\n" in messages
    assert trained("two", "0", "precision=auto", "train.max_steps=17")[2] == "bf16"


LITTLE_SPACE = """
import shutil, types
from mt.artifacts import checkpoints

checkpoints.shutil = types.SimpleNamespace(rmtree=shutil.rmtree)
checkpoints.shutil.disk_usage = lambda path: types.SimpleNamespace(free=1 << 20)
from mt.cli import main
main()
"""


def test_a_checkpoint_is_not_started_without_enough_disk_space(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("train.max_steps=40", "train.save_every=5", "train.valid_every=100")
    command = [sys.executable, "-c", LITTLE_SPACE, "train", str(small_yaml(tmp_path)), *options]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 1
    message = json.loads((run / "status.json").read_text())["message"]
    assert "1 MiB are free" in message
    assert "is of update 12" in message
    assert (run / "train.log").read_text().count("of 3 failed saves") == 2
    assert not (run / "checkpoints/step_00000015").exists()


OUT_OF_MEMORY = """
import re, resource
from pathlib import Path
from mt.cli import main
from mt.runs import start as run  # loads PyTorch before the limit is set

size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (size + (300 << 20), resource.RLIM_INFINITY))
main()
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_out_of_memory_names_a_size_that_fits(
    precision: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    options = (
        "model.d_model=256",
        "model.d_ff=1024",
        "batching.max_tokens=32768",
        "train.grad_accum_steps=1",
        "threads=1",
        f"precision={precision}",
    )
    command = [sys.executable, "-c", OUT_OF_MEMORY, "train", str(config), *options]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert "out of memory" in result.stderr
    assert "which was just tried and fits (instead of 32768)" in result.stderr
    assert "train.gradient_checkpointing=true" in result.stderr


def test_a_signal_does_not_wait_for_the_tokenizer(tmp_path: Path) -> None:
    """SentencePiece trains in a single call, which takes minutes for millions of lines."""
    options = (
        f"run_dir={tmp_path}/run",
        f"cache_dir={tmp_path}/cache",
        "tokenizer.vocab_size=2000",
        "tokenizer.model_type=unigram",
    )
    command = [sys.executable, "-m", "mt", "train", "configs/quickstart.yaml", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("training the tokenizer" in line for line in process.stderr)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(60) == 143
        assert time.monotonic() - began < 5
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 143
    assert not list((tmp_path / "cache/tokenizers").iterdir())


def test_a_learning_rate_that_is_far_too_high_stops_with_exit_3(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    options = (
        "optim.lr=3",
        "optim.warmup_steps=8",
        "train.max_steps=400",
        "train.divergence_window=8",
        "train.valid_every=400",
    )
    result = run_mt("train", config, *options)
    assert result.returncode == 3, result.stderr
    assert "its best was" in result.stderr
    assert "train.divergence_factor: 1.3" in result.stderr
    assert "optim.lr" in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "diverged"
