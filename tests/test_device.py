"""Where to compute: what is chosen, what is refused, and that bf16 is not chosen where it is slow."""

import subprocess
import sys

import pytest
import torch

from mt.device import choose_compute, has_native_bf16
from mt.errors import ConfigError
from tests.conftest import ROOT

CPU = torch.device("cpu")


def test_auto_on_cpu_is_bf16_only_with_hardware_for_it() -> None:
    expected = torch.bfloat16 if has_native_bf16(CPU) else torch.float32
    assert choose_compute("cpu", "auto", None).dtype == expected
    assert choose_compute("cpu", "fp32", None).dtype == torch.float32


def test_bf16_without_hardware_for_it_is_kept_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("mt.device.has_native_bf16", lambda device: False)
    monkeypatch.setattr("mt.device.logger.warning", lambda message, *args: said.append(message % args))
    compute = choose_compute("cpu", "bf16", None)
    assert compute.dtype == torch.bfloat16
    assert "no hardware support on this cpu" in said[0]
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "cpu:x"])
def test_a_device_that_is_not_there_is_a_config_error(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        choose_compute(device, "fp32", None)


def test_threads_are_set_in_a_process_of_their_own() -> None:
    code = "import torch; from mt.device import choose_compute; print(choose_compute('cpu', 'fp32', 1), torch.get_num_threads())"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert result.stdout == "CPU, 1 threads, fp32 1\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_step_runs_on_the_gpu() -> None:
    from mt.config import ModelConfig
    from mt.data.batching import collate
    from mt.model.transformer import build_model
    from mt.train.loss import loss_sums

    compute = choose_compute("cuda", "bf16", None)
    model = build_model(ModelConfig(preset="tiny", d_model=32, num_heads=2), 50, 50, seed=1).to(compute.device)
    with compute.autocast():
        loss = loss_sums(model, collate([([5, 6], [7, 8, 9])]).to(compute.device), 0.1).smoothed
    loss.backward()
    assert torch.isfinite(loss)
