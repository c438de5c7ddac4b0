"""Devices, precisions and threads: what `auto` stands for, and which values are refused."""

import os
import subprocess
import sys

import pytest
import torch

from mt.errors import ConfigError
from mt.runtime.device import has_native_bf16, set_up_compute
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.mark.parametrize(("native", "expected"), [("0", torch.float32), ("1", torch.bfloat16)])
def test_auto_is_bf16_only_for_training_and_with_hardware_for_it(
    native: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MT_NATIVE_BF16", native)
    assert has_native_bf16(CPU) == (native == "1")
    assert set_up_compute("cpu", "auto", None, for_training=True).dtype == expected
    assert set_up_compute("cpu", "auto", None).dtype == torch.float32
    assert set_up_compute("cpu", "fp32", None, for_training=True).dtype == torch.float32


def test_a_value_of_mt_native_bf16_other_than_0_and_1_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MT_NATIVE_BF16", "yes")
    with pytest.raises(ConfigError, match="'yes' in the environment; use 0 or 1"):
        set_up_compute("cpu", "auto", None)


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("isa", "has_it"),
    [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True), ("ALL", True)],
)
def test_bf16_instructions_that_onednn_may_not_use_do_not_count(
    isa: str, has_it: bool, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MT_NATIVE_BF16", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert has_native_bf16(CPU)
    monkeypatch.setenv(variable, isa)
    assert has_native_bf16(CPU) == has_it


def test_bf16_without_hardware_for_it_is_kept_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("mt.runtime.device.has_native_bf16", lambda device: False)
    monkeypatch.setattr(
        "mt.runtime.device.logger.warning", lambda message, *args: warnings.append(message % args)
    )
    compute = set_up_compute("cpu", "bf16", None)
    assert compute.dtype == torch.bfloat16
    assert "no hardware support on this cpu" in warnings[0]
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "cpu:x", "mps", "cuda:01"])
def test_a_device_that_does_not_exist_is_a_config_error(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        set_up_compute(device, "fp32", None)


def test_fp16_on_a_cpu_is_refused_and_the_error_says_what_to_use() -> None:
    with pytest.raises(ConfigError, match="precision: fp16 is for GPUs") as error:
        set_up_compute("cpu", "fp16", None)
    assert "fp32" in str(error.value)
    assert "bf16" in str(error.value)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_cpu_computes_in_the_precision_that_was_asked_for(precision: str) -> None:
    compute = set_up_compute("cpu", precision, None, for_training=True)
    assert (
        compute.dtype
        in {
            "auto": {torch.float32, torch.bfloat16},
            "fp32": {torch.float32},
            "bf16": {torch.bfloat16},
        }[precision]
    )
    with compute.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == compute.dtype


def test_threads_are_set_for_a_block_or_for_the_whole_process() -> None:
    code = (
        "import torch; from mt.runtime.device import set_up_compute; torch.set_num_threads(3)\n"
        "compute, n = set_up_compute('cpu', 'fp32', 2), torch.get_num_threads\n"
        "with compute.temporary_process_threads(): inside = n()\n"
        "print(compute, inside, n()); compute.set_process_threads(); print(n())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert result.stdout == "CPU, 2 threads, fp32 2 3\n2\n"


def test_deterministic_changes_nothing_on_a_cpu() -> None:
    compute = set_up_compute("cpu", "fp32", None, deterministic=True)
    assert compute == set_up_compute("cpu", "fp32", None)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "deterministic" not in str(compute)


def test_deterministic_configures_the_process_for_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr("mt.runtime.device.make_process_deterministic", lambda: calls.append(True))
    assert str(set_up_compute("cuda", "bf16", None)) == "a GPU, bf16"
    assert calls == []
    compute = set_up_compute("cuda", "bf16", None, deterministic=True)
    assert str(compute) == "a GPU, bf16, deterministic"
    assert calls == [True]


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:8", ":4096:8"), (":0:0", ":4096:8")],
)
def test_deterministic_sets_algorithms_workspaces_and_attention_kernels(
    before: str | None, after: str
) -> None:
    code = (
        "import os, torch\nfrom mt.runtime.device import make_process_deterministic\n"
        "make_process_deterministic()\n"
        "print(os.environ['CUBLAS_WORKSPACE_CONFIG'], torch.are_deterministic_algorithms_enabled(),"
        " torch.is_deterministic_algorithms_warn_only_enabled())\n"
        "cuda = torch.backends.cuda\n"
        "print(cuda.flash_sdp_enabled(), cuda.cudnn_sdp_enabled(),"
        " cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())"
    )
    env = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    env |= {} if before is None else {"CUBLAS_WORKSPACE_CONFIG": before}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    assert result.stdout == f"{after} True False\nFalse False True True\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_loss_and_its_gradients_are_computed_on_the_gpu(precision: str) -> None:
    from mt.config import ModelConfig
    from mt.data.batch import collate, to_device
    from mt.model.transformer import build_model
    from mt.train.objective import loss_sums

    compute = set_up_compute("cuda", precision, None)
    model = build_model(ModelConfig(preset="tiny", d_model=32, num_heads=2), 50, 50, seed=1).to(
        compute.device
    )
    with compute.autocast():
        loss = loss_sums(model, to_device(collate([([5, 6], [7, 8, 9])]), compute.device), 0.1)
    loss.smoothed.backward()
    assert {loss.smoothed.dtype, loss.nll.dtype, *(p.dtype for p in model.parameters())} == {
        torch.float32
    }
    assert loss.smoothed.isfinite()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.device.type == "cuda"
        for p in trained
    )
