"""`batching.max_tokens: auto` finds what fits, keeps it on resume, and changes no update."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mt.config import load_config
from mt.data.prepare import prepare
from mt.errors import ConfigError
from mt.runs import autobatch
from mt.runs.autobatch import CPU_CEILING, find_max_tokens, longest_side
from mt.runtime.device import Compute
from tests.conftest import run_mt
from tests.data.conftest import pair_ids

CPU = Compute(torch.device("cpu"), torch.float32)
AUTO = ("batching.max_tokens=auto", "train.grad_accum_steps=1", "train.batch_tokens=600")


def test_a_run_finds_max_tokens_and_resumes_with_it(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    first = run_mt("train", config, *AUTO, "train.max_steps=2")
    assert first.returncode == 0, first.stderr
    # 512 is the largest power of two up to `train.batch_tokens`, which is 600.
    assert "batching.max_tokens: auto: 512" in first.stderr
    state = json.loads((tmp_path / "run/checkpoints/last/training/state.json").read_text())
    assert state["max_tokens"] == 512
    assert "max_tokens: 512" in (tmp_path / "run/checkpoints/last/config.yaml").read_text()
    assert "max_tokens: auto" in (tmp_path / "run/config.yaml").read_text()
    again = run_mt("train", config, *AUTO, "train.max_steps=3")
    assert again.returncode == 0, again.stderr
    assert "auto: 512" not in again.stderr


def test_trying_sizes_does_not_change_the_weights_of_the_run(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    runs = {name: tmp_path / name for name in ("auto", "512")}
    for name, folder in runs.items():
        folder.mkdir()
        result = run_mt(
            "train",
            small_yaml(folder),
            *AUTO[1:],
            f"batching.max_tokens={name}",
            "train.max_steps=3",
        )
        assert result.returncode == 0, result.stderr
    first, second = (folder / "run/checkpoints/last/model.safetensors" for folder in runs.values())
    assert first.read_bytes() == second.read_bytes()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, int | None]], list[int]]:
    """Return a function that fakes how much memory each candidate needs.

    The function returns a list to which each candidate is added when it is tried.
    """

    def fake_memory(amounts: dict[int, int | None]) -> list[int]:
        seen: list[int] = []
        monkeypatch.setattr(
            autobatch,
            "_train_worst_batch",
            lambda trainer, candidate, longest: seen.append(candidate) or amounts[candidate],
        )
        monkeypatch.setattr(autobatch, "_peak_bytes", lambda compute: 0)
        monkeypatch.setattr(autobatch, "available_memory", lambda device: 1000)
        return seen

    return fake_memory


@pytest.mark.parametrize(
    ("amounts", "expected", "tries"),
    [
        ({256: 100, 512: 200, 1024: 400, 2048: 800}, 2048, [256, 512, 1024, 2048]),
        # 2048 would need twice as much memory as 1024. This would not fit, so 2048 is not tried.
        ({256: 100, 512: 200, 1024: 500}, 1024, [256, 512, 1024]),
        ({256: 400, 512: None}, 256, [256, 512]),  # 512 runs out of memory
        ({256: 100, 512: 950}, 256, [256, 512]),  # 512 fits, but leaves too little free
    ],
)
def test_the_largest_size_that_fits_is_chosen(
    amounts: dict[int, int | None],
    expected: int,
    tries: list[int],
    tried: Callable[[dict[int, int | None]], list[int]],
    small_yaml: Callable[..., Path],
    tmp_path: Path,
) -> None:
    seen = tried(amounts)
    config = load_config(small_yaml(tmp_path), [AUTO[0], AUTO[1], "train.batch_tokens=3000"])
    assert find_max_tokens(config, prepare(config), CPU) == expected
    assert seen == tries


def test_a_sharded_model_is_refused_with_numbers_to_try_by_hand(
    tried: Callable[[dict[int, int | None]], list[int]],
    small_yaml: Callable[..., Path],
    tmp_path: Path,
) -> None:
    seen = tried({256: 100, 512: 200, 1024: 300})
    options = [AUTO[0], AUTO[1], "train.batch_tokens=5000"]
    config = load_config(small_yaml(tmp_path), [*options, "train.parallel=fsdp"])
    message = r"(?s)does not support .* on 4 ranks.*: start with 256, .*\d+ tokens.*, up to 1024$"
    with pytest.raises(ConfigError, match=message):
        find_max_tokens(config, prepare(config), CPU, ranks=4)
    assert seen == []
    ddp = load_config(small_yaml(tmp_path), options)
    assert find_max_tokens(ddp, prepare(ddp), CPU, ranks=4) == 1024


def test_if_no_size_fits_the_error_says_what_to_do(
    tried: Callable[[dict[int, int | None]], list[int]],
    small_yaml: Callable[..., Path],
    tmp_path: Path,
) -> None:
    tried({256: None})
    config = load_config(small_yaml(tmp_path), AUTO)
    message = r"(?s)batch of the longest pairs .* does not fit .* data\.filters\.max_len"
    with pytest.raises(ConfigError, match=message):
        find_max_tokens(config, prepare(config), CPU)


def test_no_size_above_the_cpu_ceiling_is_tried_on_a_cpu(
    tried: Callable[[dict[int, int | None]], list[int]],
    small_yaml: Callable[..., Path],
    tmp_path: Path,
) -> None:
    seen = tried({1 << power: 1 for power in range(8, 20)})
    config = load_config(small_yaml(tmp_path), [AUTO[0], AUTO[1], "train.batch_tokens=100000"])
    assert find_max_tokens(config, prepare(config), CPU) == CPU_CEILING == seen[-1]


def test_the_longest_side_covers_both_sides_and_the_end_of_sentence(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    prepared = prepare(load_config(small_yaml(tmp_path)))
    cache = prepared.train
    sides = [len(ids) for index in range(len(cache)) for ids in pair_ids(cache, index)]
    assert longest_side(prepared) == max(sides) + 1


def test_auto_without_batch_tokens_is_a_mistake(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    result = run_mt("train", small_yaml(tmp_path), "batching.max_tokens=auto")
    assert result.returncode == 2
    assert "auto needs train.batch_tokens" in result.stderr
