"""Fine-tuning: starting from a model, and freezing parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mt.artifacts import find_model
from mt.decode.loading import load_model
from mt.errors import ConfigError
from mt.train.finetune import initialize
from tests.conftest import run_mt


def write_config(path: Path, base: Path, **train: Any) -> Path:
    """Write the configuration of a new run whose sizes differ from those of the run `base`."""
    config = yaml.safe_load((base / "config.yaml").read_text(encoding="utf-8"))
    config["run_dir"] = str(path.parent / "tuned")
    config["model"] |= {"d_model": 64, "dropout": 0.25}
    config["tokenizer"]["vocab_size"] = 500
    config["train"] |= {
        "max_steps": 4,
        "valid_every": 2,
        "save_every": 2,
        "patience": None,
        **train,
    }
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_a_run_starts_from_the_weights_tokenizer_and_sizes_of_a_model(
    trained_run: Path, tmp_path: Path
) -> None:
    base = load_model(trained_run, torch.device("cpu"))
    result = run_mt(
        "train",
        write_config(tmp_path / "c.yaml", trained_run),
        "optim.lr=1e-8",
        "--init-from",
        trained_run,
    )
    assert result.returncode == 0, result.stderr
    size = base.config.model.d_model
    assert f"model.d_model: {size}, as in {find_model(trained_run)} (not 64)" in result.stderr
    tuned = load_model(tmp_path / "tuned", torch.device("cpu"))
    assert tuned.tokenizer.hash == base.tokenizer.hash
    assert (tuned.config.model.d_model, tuned.config.model.dropout) == (size, 0.25)
    assert tuned.config.train.init_from == str(find_model(trained_run))
    for name, weight in base.model.named_parameters():
        torch.testing.assert_close(
            dict(tuned.model.named_parameters())[name], weight, rtol=0, atol=1e-5
        )
    again = run_mt(
        "train",
        tmp_path / "c.yaml",
        "optim.lr=1e-8",
        "train.max_steps=6",
        "--init-from",
        trained_run,
    )
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr


def test_only_parameters_that_are_not_frozen_change(trained_run: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path / "c.yaml", trained_run, freeze=["encoder.layers.*", "*.embed_tokens.*"]
    )
    result = run_mt(
        "train", config, "optim.lr=0.01", "optim.warmup_steps=1", "--init-from", trained_run
    )
    assert result.returncode == 0, result.stderr
    assert "frozen: " in result.stderr
    before, after = (
        dict(load_model(path, torch.device("cpu")).model.named_parameters())
        for path in (trained_run, tmp_path / "tuned")
    )
    for name in before:
        is_frozen = name.startswith("encoder.layers.") or ".embed_tokens." in name
        is_frozen |= name.endswith("k_proj.bias")  # the bias of a key projection is never trained
        assert torch.equal(before[name], after[name]) == is_frozen, name


def test_a_missing_model_and_a_wrong_freeze_pattern_are_errors(
    trained_run: Path, tmp_path: Path
) -> None:
    missing = run_mt(
        "train", write_config(tmp_path / "c.yaml", trained_run), "--init-from", tmp_path / "nowhere"
    )
    assert missing.returncode == 1
    assert "nowhere: no such folder" in missing.stderr
    loaded = load_model(trained_run, torch.device("cpu"))
    for freeze, message in (
        (["nothing.*"], "matches no parameter"),
        (["*"], "matches all parameters, so nothing is left to train"),
    ):
        train = loaded.config.train.model_copy(update={"freeze": freeze, "init_from": None})
        with pytest.raises(ConfigError, match=message):
            initialize(loaded.model, loaded.config.model_copy(update={"train": train}))


def test_the_plan_of_a_fine_tuning_has_the_size_of_the_initial_model(
    trained_run: Path, tmp_path: Path
) -> None:
    result = run_mt(
        "train",
        write_config(tmp_path / "c.yaml", trained_run),
        "--plan",
        "--init-from",
        trained_run,
    )
    assert result.returncode == 0, result.stderr
    total = sum(p.numel() for p in load_model(trained_run, torch.device("cpu")).model.parameters())
    assert f"{total:,}" in result.stdout
    assert not (tmp_path / "tuned").exists()
