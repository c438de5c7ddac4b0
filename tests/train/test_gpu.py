"""Packed batches and compiled layers on a GPU: when they are used, and that results stay equal."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from mt.config import ModelConfig, OptimConfig
from mt.data.batch import AnyBatch, collate, pack, to_device
from mt.model.attention import PaddedAttention
from mt.model.kernels import compile_layers, missing_compiler, packs
from mt.model.transformer import Transformer, build_model
from mt.runtime.device import Compute
from mt.train.gradients import LossScale, apply_gradients
from mt.train.objective import loss_sums
from mt.train.optimizer import build_optimizer
from tests.conftest import ROOT

VOCAB = 40
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the warnings from `mt.model.kernels`."""
    messages: list[str] = []
    monkeypatch.setattr(
        "mt.model.kernels.logger.warning", lambda message, *args: messages.append(message % args)
    )
    return messages


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function that sets the faked compute capability of the GPU, which starts at 8.0."""

    def pretend(major: int, minor: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    pretend(8, 0)
    return pretend


def tiny(**options: Any) -> ModelConfig:
    return ModelConfig(
        **{
            "d_model": 16,
            "d_ff": 24,
            "num_heads": 2,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "dropout": 0.0,
        }
        | options
    )


# --- packing


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("d_model", "num_heads"), [(512, 8), (16, 2), (512, 2)])
def test_half_precision_without_attention_dropout_is_packed(
    dtype: torch.dtype, d_model: int, num_heads: int, warnings: list[str]
) -> None:
    assert packs(tiny(d_model=d_model, num_heads=num_heads, dropout=0.3), Compute(CUDA, dtype))
    assert warnings == []


OBSTACLES = [
    (torch.float32, {}, ["precision: fp32"]),
    (torch.bfloat16, {"attention_dropout": 0.1}, ["model.attention_dropout: 0.1"]),
    (torch.bfloat16, {"d_model": 36, "num_heads": 3}, ["(d_model / num_heads) of 12"]),
    (torch.bfloat16, {"d_model": 528, "num_heads": 2}, ["(d_model / num_heads) of 264"]),
    (
        torch.float32,
        {"attention_dropout": 0.25, "num_heads": 4},
        ["precision: fp32", "model.attention_dropout: 0.25", "(d_model / num_heads) of 4 "],
    ),
]


@pytest.mark.usefixtures("capability")
@pytest.mark.parametrize(("dtype", "options", "named"), OBSTACLES)
def test_one_warning_names_every_obstacle_to_packing(
    dtype: torch.dtype, options: dict[str, Any], named: list[str], warnings: list[str]
) -> None:
    assert not packs(tiny(**options), Compute(CUDA, dtype))
    [warning] = warnings
    assert [
        text in warning for text in ("precision:", "model.attention_dropout:", "num_heads)")
    ] == [
        any(text in name for name in named)
        for text in ("precision:", "model.attention_dropout:", "num_heads)")
    ]
    assert all(name in warning for name in named)


@pytest.mark.parametrize(("major", "minor"), [(7, 0), (7, 5)])
def test_fp16_on_a_gpu_before_ampere_is_padded_and_the_warning_says_why(
    major: int, minor: int, warnings: list[str], capability: Callable[[int, int], None]
) -> None:
    capability(major, minor)
    assert not packs(tiny(), Compute(CUDA, torch.float16))
    [warning] = warnings
    assert f"compute capability {major}.{minor} (it needs 8.0" in warning
    assert "precision" not in warning
    capability(9, 0)
    assert packs(tiny(), Compute(CUDA, torch.float16))


@pytest.mark.usefixtures("capability")
def test_a_deterministic_run_is_padded_without_a_warning(warnings: list[str]) -> None:
    assert not packs(tiny(), Compute(CUDA, torch.bfloat16, is_deterministic=True))
    assert warnings == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_pads_without_a_warning(dtype: torch.dtype, warnings: list[str]) -> None:
    assert not packs(tiny(attention_dropout=0.1), Compute(CPU, dtype))
    assert not packs(tiny(), Compute(CPU, dtype))
    assert warnings == []


# --- compiling


def fake_installed(
    monkeypatch: pytest.MonkeyPatch, triton: bool, *programs: str, cc: str | None = None
) -> None:
    """Pretend that only these programs are installed, and also Triton if `triton` is true."""
    monkeypatch.setattr(
        "mt.model.kernels.importlib.util.find_spec",
        lambda name: object() if triton and name == "triton" else None,
    )
    monkeypatch.setattr(
        "mt.model.kernels.shutil.which",
        lambda name: f"/usr/bin/{name}" if name in programs else None,
    )
    if cc is None:
        monkeypatch.delenv("CC", raising=False)
    else:
        monkeypatch.setenv("CC", cc)


@pytest.mark.parametrize("program", ["cc", "gcc", "clang"])
def test_triton_and_any_c_compiler_are_enough(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_installed(monkeypatch, True, program)
    assert missing_compiler() is None


def test_the_c_compiler_in_the_variable_cc_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_installed(monkeypatch, True, "icx", cc="icx")
    assert missing_compiler() is None
    fake_installed(monkeypatch, True, "icx")
    assert "a C compiler" in str(missing_compiler())


@pytest.mark.parametrize(
    ("triton", "programs", "missing"),
    [(False, ["cc", "gcc"], "triton"), (True, [], "a C compiler"), (False, [], "triton")],
)
def test_a_missing_part_of_the_compiler_is_named_and_nothing_is_compiled(
    triton: bool,
    programs: list[str],
    missing: str,
    warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_installed(monkeypatch, triton, *programs)
    assert missing in str(missing_compiler())
    model = build_model(tiny(), VOCAB, VOCAB, seed=1)
    compile_layers(model.layers, Compute(CUDA, torch.bfloat16))
    assert compiled_modules(model) == []
    [warning] = warnings
    assert warning.startswith(f"train.compile: {missing_compiler()} is missing")


def compiled_modules(model: Transformer) -> list[str]:
    """Return the names of the modules that were compiled."""
    return [
        name for name, module in model.named_modules() if module._compiled_call_impl is not None
    ]


def test_a_cpu_compiles_nothing_without_a_warning(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_installed(monkeypatch, True, "cc")
    model = build_model(tiny(), VOCAB, VOCAB, seed=1)
    compile_layers(model.layers, Compute(CPU, torch.bfloat16))
    assert compiled_modules(model) == []
    assert warnings == []


def test_every_layer_is_compiled_and_its_weights_keep_their_names(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_installed(monkeypatch, True, "cc")
    model = build_model(tiny(), VOCAB, VOCAB, seed=1)
    names = list(model.state_dict())
    compile_layers(model.layers, Compute(CUDA, torch.bfloat16))
    assert compiled_modules(model) == [
        "encoder.layers.0",
        "encoder.layers.1",
        "decoder.layers.0",
        "decoder.layers.1",
    ]
    assert list(model.state_dict()) == names
    assert warnings == []


# --- results of compiled layers


def sentences(count: int, longest: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Return random pairs, of which the first has the longest source and the last is short."""
    draw = torch.Generator().manual_seed(seed)
    lens = torch.randint(1, longest, (count, 2), generator=draw).tolist()
    lens[0], lens[-1] = [longest, longest - 1], [1, 2]
    return [
        tuple(torch.randint(4, VOCAB, (n,), generator=draw).tolist() for n in pair) for pair in lens
    ]  # type: ignore[misc]


def trained(model: Transformer) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def loss_and_gradients(model: Transformer, batch: AnyBatch) -> list[Tensor]:
    loss = loss_sums(model, batch, 0.1)
    return [loss.smoothed.detach(), loss.nll, *torch.autograd.grad(loss.smoothed, trained(model))]


Tracer = Callable[[str], CompileCounterWithBackend]


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tracer]:
    """Yield a function that makes `module.compile` trace the layers without generating code.

    The function returns a counter that collects the traced graphs. The backend `aot_eager` traces
    gradients too, which takes longer.
    """
    real = nn.Module.compile

    def trace_with(backend: str) -> CompileCounterWithBackend:
        counter = CompileCounterWithBackend(backend)
        monkeypatch.setattr(
            nn.Module,
            "compile",
            lambda self, **options: real(self, backend=counter, fullgraph=True, **options),
        )
        return counter

    fake_installed(monkeypatch, True, "cc")
    torch._dynamo.reset()
    yield trace_with
    torch._dynamo.reset()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("backend", "stacks", "norm", "activation", "training"),
    [
        ("eager", 2, "pre", "relu", True),
        ("aot_eager", 1, "pre", "relu", True),
        pytest.param("aot_eager", 2, "post", "relu", True, marks=SLOW),
        pytest.param("aot_eager", 2, "post", "gelu", False, marks=SLOW),
    ],
)
def test_traced_layers_give_the_same_loss_and_gradients(
    backend: str,
    stacks: int,
    norm: str,
    activation: str,
    training: bool,
    tracer: Tracer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Use the GPU attention. More layers and batches of other sizes must not cause new traces.

    There must be one graph for encoder layers and one for decoder layers, because PyTorch stops
    compiling a function after eight graphs.
    """
    monkeypatch.setattr(PaddedAttention, "attend", PaddedAttention._fused)
    config = tiny(norm=norm, activation=activation, encoder_layers=5, decoder_layers=5)
    eager = build_model(config, VOCAB, VOCAB, seed=1).double().train(training)
    traced, counter = copy.deepcopy(eager), tracer(backend)
    compile_layers(traced.layers, Compute(CUDA, torch.bfloat16))
    for layer in traced.decoder.layers if stacks == 1 else ():
        layer._compiled_call_impl = None
    for count, longest in ((5, 7), (3, 11), (9, 4), (2, 17)):
        batch = collate(sentences(count, longest, seed=count))
        for ours, theirs in zip(
            loss_and_gradients(traced, batch), loss_and_gradients(eager, batch), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert len([graph for graph in counter.graphs if len(graph.graph.nodes)]) == stacks


# --- on a GPU


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_gpu(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.gpu(NEEDS_GPU(test))


BF16 = Compute(CUDA, torch.bfloat16)


def relative_error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """Return the relative error of all tensors taken together."""
    a, b = (
        torch.cat([x.detach().flatten().double().cpu() for x in side]) for side in (ours, exact)
    )
    return float((a - b).norm() / b.norm())


@on_gpu
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("make", [collate, pack])
def test_bf16_on_a_gpu_is_near_fp32_on_a_cpu(norm: str, make: Callable[..., AnyBatch]) -> None:
    """The bounds allow a few dozen roundings to 8 bits. A wrong mask would cause larger errors."""
    exact = build_model(
        tiny(d_model=64, d_ff=128, num_heads=4, norm=norm), VOCAB, VOCAB, seed=1
    ).train()
    model = copy.deepcopy(exact).to(CUDA)
    pairs = sentences(17, 30, seed=1)
    with BF16.autocast():
        ours = loss_sums(model, to_device(make(pairs), CUDA), 0.1)
    theirs = loss_sums(exact, collate(pairs), 0.1)
    our_grads, their_grads = (
        list(torch.autograd.grad(loss.smoothed, trained(m)))
        for loss, m in ((ours, model), (theirs, exact))
    )
    assert {x.dtype for x in (*ours, *our_grads)} == {torch.float32}
    assert relative_error([ours.smoothed], [theirs.smoothed]) < 0.01
    assert relative_error([ours.nll], [theirs.nll]) < 0.01
    assert relative_error(our_grads, their_grads) < 0.05


@on_gpu
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_packed_equals_padded_on_a_gpu_in_bf16(norm: str) -> None:
    """Hidden states after a layer norm are around 1, where rounding to bf16 changes them by up to
    2^-8. Packed and padded states may differ by a few such roundings, and by far less on average.
    """
    model = (
        build_model(tiny(d_model=64, d_ff=128, num_heads=4, norm=norm), VOCAB, VOCAB, seed=1)
        .to(CUDA)
        .train()
    )
    pairs = sentences(17, 30, seed=1)
    padded, packed = to_device(collate(pairs), CUDA), to_device(pack(pairs), CUDA)
    with BF16.autocast():
        losses = [loss_sums(model, batch, 0.1) for batch in (padded, packed)]
        hidden = model(padded.src, padded.src_mask, padded.tgt_in)  # type: ignore[union-attr]
        flat = model.packed(
            packed.src,
            packed.src_offsets,  # type: ignore[union-attr]
            packed.max_src_len,  # type: ignore[union-attr]
            packed.tgt_in,
            packed.tgt_offsets,  # type: ignore[union-attr]
            packed.max_tgt_len,  # type: ignore[union-attr]
        )
    real = hidden[padded.tgt_out != 0]
    torch.testing.assert_close(flat, real, rtol=0, atol=0.1)
    assert relative_error([flat], [real]) < 0.01
    assert relative_error([losses[1].smoothed], [losses[0].smoothed]) < 2e-3
    assert relative_error([losses[1].nll], [losses[0].nll]) < 2e-3


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [collate, pack])
@pytest.mark.parametrize("recompute", [False, True])
def test_updates_on_a_gpu_lower_the_loss_with_dropout(
    dtype: torch.dtype, make: Callable[..., AnyBatch], recompute: bool
) -> None:
    if dtype == torch.float32 and make is pack:
        pytest.skip("fp32 is never packed")
    compute = Compute(CUDA, dtype)
    config = tiny(
        d_model=64, d_ff=128, num_heads=4, norm="pre", dropout=0.1, activation_dropout=0.1
    )
    model = build_model(config, VOCAB, VOCAB, seed=1).to(CUDA).train()
    model.recompute(recompute)
    optimizer = build_optimizer(model, OptimConfig(lr=3e-3), CUDA)
    scale = LossScale(CUDA, enabled=dtype == torch.float16)
    batch = to_device(make(sentences(8, 12, seed=2)), CUDA)
    losses, diverged = [], torch.tensor(False, device=CUDA)
    for _ in range(80):
        with compute.autocast():
            loss = loss_sums(model, batch, 0.0)
        (loss.smoothed * (scale.scale / batch.num_tokens)).backward()
        _, diverged = apply_gradients(
            model, optimizer, loss.smoothed.detach(), scale, 1.0, diverged
        )
        losses.append(loss.nll / batch.num_tokens)
    assert not diverged
    assert float(losses[-1]) < 0.5 * float(losses[0])


@on_gpu
@pytest.mark.parametrize("make", [collate, pack])
def test_compiled_layers_equal_eager_ones_on_a_gpu(make: Callable[..., AnyBatch]) -> None:
    if missing := missing_compiler():
        pytest.skip(f"{missing} is missing")
    torch._dynamo.reset()
    eager = (
        build_model(tiny(d_model=64, d_ff=128, num_heads=4), VOCAB, VOCAB, seed=1).to(CUDA).train()
    )
    model = copy.deepcopy(eager)
    compile_layers(model.layers, BF16)
    assert compiled_modules(model)
    for count, longest in ((17, 30), (9, 21)):
        batch = to_device(make(sentences(count, longest, seed=count)), CUDA)
        with BF16.autocast():
            ours, theirs = loss_and_gradients(model, batch), loss_and_gradients(eager, batch)
        assert relative_error(ours[:2], theirs[:2]) < 0.01
        assert relative_error(ours[2:], theirs[2:]) < 0.05


# This program trains a model with dropout for a few updates, runs a beam search, and prints a hash
# of the weights and translations.
DETERMINISTIC_CODE = """
import hashlib, sys
import torch
from mt.config import ModelConfig, OptimConfig
from mt.data.batch import collate, to_device
from mt.decode.search import SearchConfig, beam_search
from mt.runtime.device import set_up_compute
from mt.decode.steps import EagerModel
from mt.model.transformer import build_model
from mt.model.kernels import compile_layers, missing_compiler, packs
from mt.train.gradients import LossScale, apply_gradients
from mt.train.objective import loss_sums
from mt.train.optimizer import build_optimizer

device, precision, wants_compiled = sys.argv[1], sys.argv[2], sys.argv[3] == "compiled"
compute = set_up_compute(device, precision, 1, deterministic=True)
sizes = dict(d_model=256, d_ff=512, num_heads=4, encoder_layers=2, decoder_layers=2)
config = ModelConfig(**sizes, dropout=0.1, activation_dropout=0.1, embedding_dropout=0.1)
assert not packs(config, compute)
model = build_model(config, 500, 500, seed=1).to(compute.device).train()
if wants_compiled:
    compile_layers(model.layers, compute)
optimizer = build_optimizer(model, OptimConfig(lr=1e-3), compute.device)
scale = LossScale(compute.device, enabled=compute.dtype == torch.float16)
diverged = torch.tensor(False, device=compute.device)
draw = torch.Generator().manual_seed(1)
for step in range(10):
    lens = torch.randint(1, 40, (64, 2), generator=draw).tolist()
    pairs = [[torch.randint(4, 500, (n,), generator=draw).tolist() for n in pair] for pair in lens]
    batch = to_device(collate(pairs), compute.device)
    torch.manual_seed(step)
    with compute.autocast():
        loss = loss_sums(model, batch, 0.1)
    (loss.smoothed * (scale.scale / batch.num_tokens)).backward()
    _, diverged = apply_gradients(model, optimizer, loss.smoothed.detach(), scale, 1.0, diverged)
digest = hashlib.sha256()
for weight in model.parameters():
    digest.update(weight.detach().cpu().numpy().tobytes())
limits = torch.full((64,), 20, device=compute.device)
translates = EagerModel(model.eval(), compute.dtype)
hyps = beam_search(translates, batch.src, batch.src_mask, limits, SearchConfig(beam_size=4))
digest.update(repr([[(hyp.tokens, hyp.score) for hyp in group] for group in hyps]).encode())
print(compute, digest.hexdigest())
"""


def run_deterministic(*arguments: str) -> str:
    """Run `DETERMINISTIC_CODE` in its own process, because it changes global settings."""
    command = [sys.executable, "-c", DETERMINISTIC_CODE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


@pytest.mark.parametrize(
    ("device", "precision", "kind"),
    [
        ("cpu", "fp32", "eager"),
        pytest.param("cuda", "fp32", "eager", marks=[pytest.mark.gpu, NEEDS_GPU]),
        pytest.param("cuda", "bf16", "eager", marks=[pytest.mark.gpu, NEEDS_GPU]),
        pytest.param("cuda", "fp16", "eager", marks=[pytest.mark.gpu, NEEDS_GPU]),
        pytest.param("cuda", "bf16", "compiled", marks=[pytest.mark.gpu, NEEDS_GPU]),
    ],
)
def test_a_deterministic_run_gives_the_same_bits_twice(
    device: str, precision: str, kind: str
) -> None:
    outputs = [run_deterministic(device, precision, kind) for _ in range(2)]
    assert outputs[0] == outputs[1]
    assert ("deterministic" in outputs[0]) == (device == "cuda")
