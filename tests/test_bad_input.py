"""Tests of common user mistakes: each gives one clear message and the right exit code, prints no
traceback and leaves the checkpoints intact.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from survival import warm

from tests.conftest import ROOT, run_mt


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run that a test may damage."""
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def assert_fails(code: int, expected: list[str], *args: object, **options: object) -> str:
    """Check that `mt` exits with `code`, prints each of the `expected` texts and no traceback.

    Returns the standard error.
    """
    result = run_mt(*args, **options)  # type: ignore[arg-type]
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for text in expected:
        assert text in result.stderr, result.stderr
    return result.stderr


CONFIG_MISTAKES = {
    "unknown key": (["train.max_stesp=5"], ["train.max_stesp", "did you mean", "max_steps"]),
    "wrong type": (["train.max_steps=many"], ["train.max_steps", "whole number", "many"]),
    "impossible sizes": (
        ["model.num_heads=5"],
        ["model.num_heads=5", "5 does not divide d_model 32"],
    ),
    "missing file": (
        ["data.train=[{src: nowhere.de, tgt: nowhere.en}]"],
        ["nowhere.de: No such file"],
    ),
    "no such dataset": (
        ["data.train=[{dataset: nowhere/at-all, src_column: de, tgt_column: en}]"],
        ["nowhere/at-all"],
    ),
    "too large a vocabulary": (
        ["tokenizer.vocab_size=100000"],
        ["tokenizer.vocab_size: 100000 is too large for this text; set it to at most"],
    ),
    "too small a vocabulary": (
        ["tokenizer.vocab_size=100"],
        ["tokenizer.vocab_size: 100 is too small"],
    ),
    "not an override": (["nonsense"], ["nonsense"]),
}


@pytest.mark.parametrize("kind", CONFIG_MISTAKES)
def test_a_mistake_in_the_configuration_exits_2_and_names_it(
    kind: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    overrides, expected = CONFIG_MISTAKES[kind]
    message = assert_fails(
        2,
        expected,
        "train",
        small_yaml(tmp_path),
        *overrides,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert len(message.strip().split("\n")) <= 3


def test_all_mistakes_of_a_file_are_reported_together(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    path = small_yaml(tmp_path, extra="sed: 3\nprecision: fp33\n")
    lines = path.read_text().split("\n")
    unknown, wrong = (lines.index(line) + 1 for line in ("sed: 3", "precision: fp33"))
    expected = [
        f"{path}:{unknown}: sed: unknown key (did you mean `seed`?)",
        f"{path}:{wrong}: precision",
    ]
    assert_fails(2, expected, "train", path)


BAD_TEXT = {
    "unequal line counts": (b"eins\nzwei\ndrei\n", b"one\ntwo\n", ["has 3 lines but", "has 2"]),
    "one-sided empty line": (
        b"eins\n\ndrei\n",
        b"one\ntwo\nthree\n",
        ["train.de:2: this line is empty, but the other side is not"],
    ),
    "broken UTF-8": (b"eins\nzw\xffei\n", b"one\ntwo\n", ["train.de:2: not UTF-8 at byte 3"]),
    "empty corpus": (b"", b"", ["no training pairs"]),
    "only empty lines": (b"\n\n", b"\n\n", ["no training pairs"]),
}


@pytest.mark.parametrize("kind", BAD_TEXT)
def test_bad_text_exits_2_with_file_and_line(
    kind: str, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    src, tgt, expected = BAD_TEXT[kind]
    (tmp_path / "train.de").write_bytes(src)
    (tmp_path / "train.en").write_bytes(tgt)
    assert_fails(
        2,
        expected,
        "train",
        small_yaml(tmp_path),
        f"data.train=[{{src: {tmp_path}/train.de, tgt: {tmp_path}/train.en}}]",
    )


def test_a_damaged_gz_exits_2(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    import gzip

    whole = gzip.compress((sample / "train.de").read_bytes())
    (tmp_path / "train.de.gz").write_bytes(whole[: len(whole) // 2])
    expected = ["train.de.gz: cannot be read"]
    assert_fails(
        2,
        expected,
        "train",
        small_yaml(tmp_path),
        f"data.train=[{{src: {tmp_path}/train.de.gz, tgt: {sample}/train.en}}]",
    )


def cut(path: Path) -> None:
    """Cut the last bytes off a file."""
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.yaml", "tokenizer/src.spm", "MANIFEST.json"]
)
def test_a_damaged_model_is_refused_by_name(
    run: Path, name: str, harm: Callable[[Path], None]
) -> None:
    folder = (run / "checkpoints/best").resolve()
    harm(folder / name)
    message = assert_fails(1, [folder.name], "translate", folder, stdin="Hallo\n")
    # A damaged manifest may cause an error about any file it lists.
    assert name in message or name == "MANIFEST.json"
    assert_fails(1, [folder.name], "inspect", folder)


def test_a_damaged_last_checkpoint_is_moved_aside_and_the_one_before_is_resumed(
    run: Path, trained_run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    flip(run / "checkpoints/step_00000012/training/optimizer.safetensors")
    result = run_mt("train", small_yaml(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "optimizer.safetensors" in result.stderr
    assert "step_00000008" in result.stderr
    assert (run / "checkpoints/damaged_step_00000012").is_dir()
    weights = "checkpoints/step_00000012/model.safetensors"
    assert (run / weights).read_bytes() == (trained_run / weights).read_bytes()


def test_a_run_whose_checkpoints_are_all_damaged_exits_1(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    folders = sorted((run / "checkpoints").glob("step_*"))
    for folder in folders:
        flip(folder / "model.safetensors")
    expected = [f"all {len(folders)} checkpoints are damaged", "--overwrite"]
    assert_fails(1, expected, "train", small_yaml(tmp_path))
    # A second attempt must not start from scratch either.
    assert_fails(1, expected, "train", small_yaml(tmp_path))


@pytest.mark.parametrize("path", ["no/such/model", "tests"])
def test_an_unknown_model_path_exits_1(path: str) -> None:
    assert_fails(1, [path], "translate", path, stdin="Hallo\n")
    assert_fails(1, [path], "evaluate", path, "--src", "README.md", "--ref", "README.md")


def test_a_read_only_run_folder_exits_1_and_keeps_its_checkpoints(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for folder in (run, run / "checkpoints"):
        folder.chmod(0o555)
    try:
        # Root ignores permissions, so the training process runs as `nobody`, which must be able to
        # read the folders above the run.
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o055)
        code = train_as_nobody(config, tmp_path / "log")
    finally:
        for folder in (run, run / "checkpoints"):
            folder.chmod(0o755)
    assert code == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def train_as_nobody(config: Path, log: Path) -> int:
    """Return the exit code of `mt train` in a child process that runs as `nobody`.

    The child loads all modules before it gives up root's permissions.
    """

    def run() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        warm.command("train", config, "train.max_steps=20")()

    return warm.start(run, [os.devnull, log, log]).wait()


def test_changed_model_or_data_is_refused_on_resume_with_the_difference(
    run: Path, small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    assert_fails(
        2,
        ["model.dropout: 0.1 -> 0.2", "another run_dir"],
        "train",
        config,
        "model.dropout=0.2",
        "train.max_steps=20",
    )
    lines = (sample / "train.de").read_bytes().split(b"\n")
    (tmp_path / "other.de").write_bytes(b"\n".join([b"Ganz anders.", *lines[1:]]))
    expected = ["other data"]
    assert_fails(
        2,
        expected,
        "train",
        config,
        f"data.train=[{{src: {tmp_path}/other.de, tgt: {sample}/train.en}}]",
        "train.max_steps=20",
    )


def test_a_finished_run_says_so_and_names_max_steps(
    run: Path, small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    result = run_mt("train", small_yaml(tmp_path))
    assert result.returncode == 0
    assert "finished at update 12" in result.stderr
    assert "train.max_steps" in result.stderr


def test_input_that_is_not_utf8_names_its_line(trained_run: Path) -> None:
    assert_fails(
        2, ["standard input:2: not UTF-8"], "translate", trained_run, stdin=b"gut\nschl\xfcssel\n"
    )
    replaced = run_mt(
        "translate", trained_run, "--on-invalid-utf8", "replace", stdin=b"gut\nschl\xfcssel\n"
    )
    assert replaced.returncode == 0
    assert replaced.stdout.count("\n") == 2


WRONG_OPTIONS = {
    "nbest without tsv": (["translate", "MODEL", "--nbest", "2"], "--format tsv"),
    "nbest over beam": (
        ["translate", "MODEL", "--nbest", "9", "--beam-size", "3", "--format", "tsv"],
        "nbest",
    ),
    "a beam of size 0": (["translate", "MODEL", "--beam-size", "0"], "beam_size"),
    "a GPU that does not exist": (["translate", "MODEL", "--device", "cuda:99"], "cuda:99"),
    "an unknown device": (["translate", "MODEL", "--device", "toaster"], "toaster"),
    "source without reference": (["evaluate", "MODEL", "--src", "README.md"], "--ref"),
    "neither model nor file": (["evaluate"], "MODEL"),
    "different lengths": (
        ["evaluate", "--hyp", "LICENSE", "--ref", "pyproject.toml"],
        "match line by line",
    ),
    "average of nothing": (["average", "MODEL", "-o", "x"], "--last"),
    "average of too many": (["average", "MODEL", "--last", "50", "-o", "x"], "50 checkpoints"),
    "an option that does not exist": (["translate", "MODEL", "--beam", "5"], "--beam"),
}


@pytest.mark.parametrize("kind", WRONG_OPTIONS)
def test_a_wrong_option_is_one_message(kind: str, trained_run: Path) -> None:
    args, expected = WRONG_OPTIONS[kind]
    result = run_mt(
        *[trained_run if arg == "MODEL" else arg for arg in args], stdin="Hallo\n", cwd=ROOT
    )
    assert result.returncode == (1 if kind == "average of too many" else 2), result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
