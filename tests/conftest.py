"""Fixtures and functions that many tests use, such as a small configuration and a finished run."""

import contextlib
import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from survival import warm

if TYPE_CHECKING:
    from mt.data.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
with contextlib.suppress(ImportError):  # a machine that only runs the GPU tests may lack hypothesis
    import hypothesis

    # Without a deadline, tests do not fail because the machine is busy.
    hypothesis.settings.register_profile("mt", deadline=None)
    hypothesis.settings.load_profile("mt")
# A folder with real corpora, which are not in the repository. It contains the folders multi30k and
# enja, which hold gzipped text.
CORPORA = os.environ.get("MT_TEST_CORPORA")


def corpus(name: str) -> Path:
    """Return the folder of a real corpus; if it does not exist, skip the test."""
    folder = Path(CORPORA or ROOT / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no corpus {folder}: set MT_TEST_CORPORA to the folder that holds {name}/")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report prominently how many tests were skipped because the real text was missing."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("MT_TEST_CORPORA" in str(report.longrepr) for report in skipped)
    if count:
        message = f"{count} tests on real text DID NOT RUN: set MT_TEST_CORPORA"
        terminalreporter.write_line(message, red=True, bold=True)


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """Restore logging after each test, because commands that run in this process change it."""
    logger = logging.getLogger("mt")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.level, logger.propagate, logger.handlers[:] = before
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


@pytest.fixture
def one_thread() -> None:
    """Let PyTorch use one thread in this process from now on, so that rounding is the same."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first pairs of the sample corpus.

    It has 400 pairs for training, 20 for validation and 20 for testing.
    """
    folder = tmp_path_factory.mktemp("sample")
    for split, count in (("train", 400), ("valid", 20), ("test", 20)):
        for language in ("de", "en"):
            lines = sample_lines(split, language, count)
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_yaml(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes the configuration of a tiny model, followed by `extra` YAML."""

    def write(folder: Path, extra: str = "") -> Path:
        path = folder / "small.yaml"
        path.write_text(
            f"""
run_dir: {folder}/run
cache_dir: {tmp_path_factory.getbasetemp()}/cache
device: cpu
threads: 1
data:
  train: [{{src: {sample}/train.de, tgt: {sample}/train.en}}]
  valid: [{{src: {sample}/valid.de, tgt: {sample}/valid.en}}]
  test: [{{name: tiny test, src: {sample}/test.de, tgt: {sample}/test.en}}]
tokenizer: {{vocab_size: 500}}
model:
  {{preset: tiny, d_model: 32, d_ff: 64, num_heads: 2, encoder_layers: 1, decoder_layers: 1,
    attention_dropout: 0.1}}
batching: {{max_tokens: 512}}
optim: {{lr: 1e-3, warmup_steps: 5}}
train:
  {{max_steps: 12, ema_decay: 0.9, valid_every: 6, save_every: 4, log_every: 2,
    grad_accum_steps: 2}}
valid: {{max_sentences: 4}}
decode: {{max_len_b: 5}}
{extra}""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture(scope="session")
def trained_run(small_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished small run, which tests may read or copy but not change."""
    folder = tmp_path_factory.mktemp("trained")
    result = run_mt("train", small_yaml(folder))
    assert result.returncode == 0, result.stderr
    return folder / "run"


def sample_lines(split: str, language: str, count: int) -> list[str]:
    """Return the first `count` lines of a sample corpus split in the given language."""
    return (
        (ROOT / f"data/sample/{split}.{language}").read_text(encoding="utf-8").split("\n")[:count]
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "Tokenizer":
    """Return a joint tokenizer of 420 pieces, trained on 300 pairs of the sample corpus."""
    from mt.config import TokenizerConfig
    from mt.data.tokenizer import Tokenizer, train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    pairs = list(
        zip(*(sample_lines("train", language, 300) for language in ("de", "en")), strict=True)
    )
    train_tokenizer(lambda: pairs, TokenizerConfig(vocab_size=420, num_threads=1), folder)
    return Tokenizer.load(folder)


def run_mt(
    *args: Any, stdin: str | bytes = "", cwd: Path = ROOT, env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run the real `mt` command in another process, and return its result.

    The process is forked from a warm one, which saves seconds. If `env` is given, a new interpreter
    is started instead, with exactly these environment variables.
    """
    command = [sys.executable, "-m", "mt", *map(str, args)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_bytes(stdin.encode() if isinstance(stdin, str) else stdin)
        if env is not None:
            with files[0].open() as given, files[1].open("w") as out, files[2].open("w") as err:
                code = subprocess.run(
                    command,
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    cwd=cwd,
                    env=env,
                    timeout=300,
                    check=False,
                ).returncode
        else:
            code = warm.start(warm.command(*args), files, cwd).wait()
        outputs = [path.read_text(encoding="utf-8", errors="replace") for path in files[1:]]
    return subprocess.CompletedProcess(command, code, *outputs)


def run_on_terminal(*args: Any, rows: int, columns: int, env: dict[str, str] | None = None) -> str:
    """Run `mt` on a terminal of this size, and return its output. Fail unless it exits with 0."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "mt", *map(str, args)]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd=ROOT, env=env, start_new_session=True
    )
    os.close(side)
    output = b""
    with contextlib.suppress(OSError):  # the command has closed its side
        while block := os.read(terminal, 4096):
            output += block
    os.close(terminal)
    assert process.wait() == 0
    return output.decode()
