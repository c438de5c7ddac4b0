"""Training, search, workers, exports and validation in every precision.

bf16 is tested on every machine, although it is slow without hardware support. What training does
when memory runs out is tested in tests/runs/test_start.py.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mt import Translator
from mt.convert.export import verify_export, write_export
from mt.data.batch import collate
from mt.data.tokenizer import BOS_ID
from mt.decode.loading import load_model
from mt.decode.search import SearchConfig, beam_search
from mt.decode.steps import EagerModel
from mt.model.transformer import Transformer
from mt.runtime.device import PRECISION_NAMES, Compute
from mt.train.objective import loss_sums
from tests.conftest import ROOT, run_mt, sample_lines
from tests.decode.test_search import (
    LENGTHS,
    LIMITS,
    plain_beam_search,
    random_model,
    sources,
)
from tests.model.small import VOCAB, small

DTYPES = {name: dtype for dtype, name in PRECISION_NAMES.items()}
TRAINING, TRANSLATING = ("fp32", "bf16"), ("fp32", "bf16", "int8")
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def runs(
    small_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Return a finished run of 12 updates for each training precision."""
    folders = {}
    for precision in TRAINING:
        folder = tmp_path_factory.mktemp(precision)
        result = run_mt("train", small_yaml(folder), f"precision={precision}")
        assert result.returncode == 0, result.stderr
        folders[precision] = folder / "run"
    return folders


def final_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints/step_00000012/model.safetensors")


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("precision", TRAINING)
def test_a_run_learns_keeps_fp32_weights_and_reports_its_precision(
    runs: dict[str, Path], precision: str
) -> None:
    run = runs[precision]
    assert losses(run)[-1] < losses(run)[0] - 0.1
    assert {weight.dtype for weight in final_weights(run).values()} == {torch.float32}
    assert f"CPU, 1 threads, {precision}" in (run / "train.log").read_text()
    state = json.loads((run / "checkpoints/step_00000012/training/state.json").read_text())
    assert (state["precision"], state["threads"]) == (precision, 1)


def test_the_precisions_differ_but_only_a_little(runs: dict[str, Path]) -> None:
    fp32, bf16 = (losses(runs[precision]) for precision in TRAINING)
    assert fp32 != bf16
    assert fp32 == pytest.approx(bf16, abs=0.02)


@pytest.mark.parametrize("precision", TRAINING)
def test_a_resumed_run_ends_with_the_same_weights(
    runs: dict[str, Path], precision: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert run_mt("train", config, f"precision={precision}", "train.max_steps=5").returncode == 0
    resumed = run_mt("train", config)  # a resumed run keeps its precision
    assert resumed.returncode == 0, resumed.stderr
    expected, resumed_weights = final_weights(runs[precision]), final_weights(tmp_path / "run")
    assert all(torch.equal(resumed_weights[name], weight) for name, weight in expected.items())


def gradients(model: Transformer, compute: Compute | None) -> dict[str, Tensor]:
    """Return the gradients of the label-smoothed loss; if `compute` is given, use its autocast."""
    rng = torch.Generator().manual_seed(2)
    lens = torch.randint(1, 9, (12, 2), generator=rng).tolist()
    pairs = [
        tuple(torch.randint(4, VOCAB, (n,), generator=rng).tolist() for n in pair) for pair in lens
    ]
    if compute is None:
        loss = loss_sums(model, collate(pairs), 0.1)  # type: ignore[arg-type]
    else:
        with compute.autocast():
            loss = loss_sums(model, collate(pairs), 0.1)  # type: ignore[arg-type]
    loss.smoothed.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 0.1)])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gradients_are_close_to_those_of_float64(norm: str, precision: str, error: float) -> None:
    exact = gradients(small(norm).double(), None)
    rounded = gradients(small(norm), Compute(CPU, DTYPES[precision]))
    assert rounded.keys() == exact.keys()
    whole = torch.cat([g.flatten() for g in exact.values()]).norm()
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32
        difference = (gradient.double() - exact[name]).norm()
        assert difference <= error * (exact[name].norm() + 0.01 * whole), name


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("bf16", 0.1), ("int8", 1e-4)])
@pytest.mark.parametrize("beam_size", [2, 5])
@torch.inference_mode()
def test_search_equals_a_plain_beam_search(beam_size: int, precision: str, error: float) -> None:
    """The plain search decodes the whole prefix of each hypothesis again at each step.

    In bf16, logits near 8 are rounded to multiples of 1/32, and in a batch, the rounded values may
    differ from those of a sentence on its own.
    """
    ready = EagerModel(random_model(1, vocab=9, sharpness=4.0), DTYPES[precision])
    src, src_mask = sources(1, LENGTHS, vocab=9)
    config = SearchConfig(beam_size, beam_size, 0.6)
    found_hyps = beam_search(ready, src, src_mask, torch.tensor(LIMITS), config)
    for i, hyps in enumerate(found_hyps):
        alone = src[i, src_mask[i]][None]

        def next_log_probs(prefix: list[int], alone: Tensor = alone) -> list[float]:
            state = ready.initial_state(alone, torch.ones_like(alone, dtype=torch.bool))
            for token in (BOS_ID, *prefix):
                log_probs = ready.step(torch.tensor([[token]]), state)
            values: list[float] = log_probs[0, 0].tolist()
            return values

        expected = plain_beam_search(next_log_probs, beam_size, LIMITS[i], 0.6, beam_size)
        assert [hyp.tokens for hyp in hyps] == [hyp.tokens for hyp in expected]
        assert [h.score for h in hyps] == pytest.approx([h.score for h in expected], abs=error)


@pytest.mark.parametrize("precision", TRANSLATING)
def test_two_workers_translate_like_one(trained_run: Path, precision: str) -> None:
    lines = sample_lines("test", "de", 40)

    def translate(workers: int) -> list[str]:
        translator = Translator.load(
            trained_run, precision=precision, threads=2, workers=workers, batch_size=8
        )
        return translator.translate(lines)

    one = translate(1)
    assert translate(2) == one
    assert len(set(one)) > 1


@pytest.fixture(scope="module")
def wide_run(small_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose model is wider and needs more memory."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = ("model.d_model=256", "model.d_ff=1024", "train.max_steps=2")
    result = run_mt("train", small_yaml(folder), "precision=fp32", *sizes)
    assert result.returncode == 0, result.stderr
    return folder / "run"


LITTLE_MEMORY = """
import re, resource, sys
from pathlib import Path
from mt import Translator
from mt.log import setup_logging

setup_logging()
if sys.argv[5] != "all":
    size = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    limit = size + (int(sys.argv[5]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
translator = Translator.load(
    sys.argv[1], precision=sys.argv[2], threads=1, workers=1, beam_size=5, batch_size=1000
)
lines = [line * 4 for line in Path(sys.argv[3]).read_text().splitlines() * int(sys.argv[4])]
print("\\n".join(translator.translate(lines)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("precision", "times", "mib"), [("fp32", 3, 100), ("bf16", 3, 110), ("int8", 6, 200)]
)
def test_no_line_is_lost_if_memory_runs_out_while_translating(
    wide_run: Path, sample: Path, precision: str, times: int, mib: int
) -> None:
    """The limits differ because oneDNN's compiled code for bf16 and int8 needs memory as well."""
    command = [sys.executable, "-c", LITTLE_MEMORY]
    results = [
        subprocess.run(
            [*command, wide_run, precision, sample / "test.de", str(times), memory],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        for memory in ("all", str(mib))
    ]
    assert [r.returncode for r in results] == [0, 0], results[1].stderr
    assert "continuing with half as many" not in results[0].stderr
    assert "continuing with half as many" in results[1].stderr
    assert len(results[0].stdout.splitlines()) == 20 * times
    same = [a == b for a, b in zip(*(r.stdout.splitlines() for r in results), strict=True)]
    # In bf16, the logits of a sentence depend on its batch, so some lines may differ.
    assert sum(same) >= (45 if precision == "bf16" else 20 * times)


@pytest.mark.parametrize("native_bf16", ["0", "1"])
def test_an_export_is_compared_in_fp32_on_every_processor(
    trained_run: Path, tmp_path: Path, native_bf16: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ctranslate2")
    monkeypatch.setenv("MT_NATIVE_BF16", native_bf16)
    loaded = load_model(trained_run, CPU)
    write_export("ctranslate2", loaded, tmp_path / "out")
    lines = sample_lines("test", "de", 30)
    parity = verify_export("ctranslate2", loaded, tmp_path / "out", lines, 5)
    assert parity.num_lines == 30
    assert parity.holds, parity


@pytest.mark.parametrize("precision", TRAINING)
def test_validation_in_training_has_the_scores_of_mt_evaluate(
    runs: dict[str, Path], precision: str, sample: Path, tmp_path: Path
) -> None:
    run = runs[precision]
    for language in ("de", "en"):
        lines = (sample / f"valid.{language}").read_text(encoding="utf-8").split("\n")[:20:5]
        (tmp_path / f"first.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = ("--src", tmp_path / "first.de", "--ref", tmp_path / "first.en", "-o", tmp_path / "hyp")
    settings = ("--beam-size", 1, "--precision", precision, "--json")
    result = run_mt("evaluate", run / "checkpoints/step_00000012", *text, *settings)
    [test] = json.loads(result.stdout)
    assert test["compute"].endswith(precision)
    printed = {score["name"]: score["value"] for score in test["scores"]}
    scores = json.loads((run / "valid/step_00000012/scores.json").read_text())
    assert (tmp_path / "hyp").read_text() == (run / "valid/step_00000012/hyp.txt").read_text()
    assert (printed["bleu"], printed["chrf"]) == (scores["bleu"], scores["chrf"])


@pytest.mark.parametrize("precision", TRAINING)
def test_each_score_of_a_run_is_logged_with_its_precision(
    runs: dict[str, Path], precision: str
) -> None:
    run = runs[precision]
    valid = [
        line
        for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "valid"
    ]
    assert [line["precision"] for line in valid] == [precision] * 2
    assert (run / "train.log").read_text().count(f" in {precision} (") == 2
    assert (
        json.loads((run / "valid/step_00000012/scores.json").read_text())["precision"] == precision
    )
    assert (
        f"CPU, 1 threads, {precision}"
        in run_mt("inspect", run / "checkpoints/step_00000012").stdout
    )


@pytest.mark.parametrize("precision", TRANSLATING)
def test_a_comparison_names_the_precision_of_its_models(
    trained_run: Path, precision: str, sample: Path
) -> None:
    first = trained_run / "checkpoints/step_00000008"
    text = ("--src", sample / "test.de", "--ref", sample / "test.en")
    shown = run_mt("compare", first, trained_run, *text, "--precision", precision).stdout
    assert f"20 sentences, models in {precision}\n" in shown
    files = run_mt(
        "compare", sample / "test.de", sample / "test.en", "--ref", sample / "test.en"
    ).stdout
    assert "20 sentences\n" in files
