"""What many tests share: a small configuration over the embedded corpus, and one run trained from
it.
"""

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
with contextlib.suppress(ImportError):  # a machine that only runs the tests for GPUs may lack it
    import hypothesis

    hypothesis.settings.register_profile("mt", deadline=None)  # a busy machine is no failure
    hypothesis.settings.load_profile("mt")
# Real corpora that the project does not hold: one folder of gzipped text each, named multi30k,
# enja.
CORPORA = os.environ.get("MT_TEST_CORPORA")


def corpus(name: str) -> Path:
    """The folder of a real corpus; without it the test is skipped, which is said at the end."""
    folder = Path(CORPORA or ROOT / "data") / name
    if not folder.is_dir():
        pytest.skip(f"no corpus {folder}: set MT_TEST_CORPORA to the folder that holds {name}/")
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly which tests had no real text."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum("MT_TEST_CORPORA" in str(report.longrepr) for report in skipped)
    if count:
        message = f"{count} tests on real text DID NOT RUN: set MT_TEST_CORPORA"
        terminalreporter.write_line(message, red=True, bold=True)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets up logging for good; other tests are not to see it."""
    logger = logging.getLogger("mt")
    before = logger.level, logger.propagate, list(logger.handlers)
    yield
    logger.level, logger.propagate, logger.handlers[:] = before
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first lines of the embedded corpus: 400 pairs to train on, 20 for
    validation and test.
    """
    folder = tmp_path_factory.mktemp("sample")
    for split, count in (("train", 400), ("valid", 20), ("test", 20)):
        for language in ("de", "en"):
            lines = sample_lines(split, language, count)
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small_yaml(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a configuration of a very small model into a folder; keyword `extra` is more YAML."""

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
model: {{preset: tiny, d_model: 32, d_ff: 64, num_heads: 2, encoder_layers: 1, decoder_layers: 1, attention_dropout: 0.1}}
batching: {{max_tokens: 512}}
optim: {{lr: 1e-3, warmup_steps: 5}}
train: {{max_steps: 12, ema_decay: 0.9, valid_every: 6, save_every: 4, log_every: 2, grad_accum_steps: 2}}
valid: {{max_sentences: 4}}
decode: {{max_len_b: 5}}
{extra}""",
            encoding="utf-8",
        )
        return path

    return write


@pytest.fixture(scope="session")
def trained_run(small_yaml: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished small run; tests read it and copy it, and leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    result = run_mt("train", small_yaml(folder))
    assert result.returncode == 0, result.stderr
    return folder / "run"


def sample_lines(split: str, language: str, count: int) -> list[str]:
    """The first lines of the embedded corpus."""
    return (
        (ROOT / f"data/sample/{split}.{language}").read_text(encoding="utf-8").split("\n")[:count]
    )


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> "Tokenizer":
    """A joint model of 420 pieces, trained on 300 pairs of the embedded corpus."""
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
    """The real command in a process of its own, forked from a warm one: a second, not five.

    With `env`, a fresh interpreter with these variables.
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
        said = [path.read_text(encoding="utf-8", errors="replace") for path in files[1:]]
    return subprocess.CompletedProcess(command, code, *said)


def run_on_terminal(*args: Any, rows: int, columns: int, env: dict[str, str] | None = None) -> str:
    """What the real command shows on a terminal of this size; it must exit 0."""
    terminal, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    command = [sys.executable, "-m", "mt", *map(str, args)]
    process = subprocess.Popen(
        command, stdin=side, stdout=side, stderr=side, cwd=ROOT, env=env, start_new_session=True
    )
    os.close(side)
    shown = b""
    with contextlib.suppress(OSError):  # the other side has closed
        while block := os.read(terminal, 4096):
            shown += block
    os.close(terminal)
    assert process.wait() == 0
    return shown.decode()
