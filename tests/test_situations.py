"""Situations from everyday use: each gives what a user expects, or a single message that helps."""

import bz2
import gzip
import json
import lzma
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mt import Translator
from mt.artifacts import find_model
from mt.decode.output import FIRST
from mt.files import try_lock
from tests.conftest import ROOT, run_mt

COMMAND = [sys.executable, "-m", "mt"]
STORED = Path(__file__).parent / "stored"
# The losses that version 0.1.0 itself had at these updates of the stored run.
STORED_LOSSES = {121: 3.109637, 122: 3.225385, 123: 3.128292, 124: 3.117197}


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run that a test may damage."""
    shutil.copytree(trained_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


# Files


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
@pytest.mark.parametrize("name", ["text", "TEXT.GZ"])
def test_text_is_read_by_what_it_is_and_not_by_its_name(
    trained_run: Path, sample: Path, tmp_path: Path, pack: Callable[[bytes], bytes], name: str
) -> None:
    text = (sample / "test.de").read_bytes()
    (tmp_path / name).write_bytes(pack(text))
    result = run_mt(
        "evaluate",
        "--hyp",
        tmp_path / name,
        "--ref",
        sample / "test.de",
        "-m",
        "chrf",
        "--resamples",
        0,
    )
    assert "chrF 100.00" in result.stdout, result.stderr


UNREADABLE = {
    "UTF-16 with a mark": ("Ein Hund.\nZwei\n".encode("utf-16"), "iconv -f UTF-16 "),
    "UTF-16 without one": ("Ein Hund.\nZwei\n".encode("utf-16-le"), "iconv -f UTF-16LE"),
    "Cyrillic UTF-16": (
        "Это длинная строка текста\nи ещё\n".encode("utf-16-le"),
        "iconv -f UTF-16LE",
    ),
    "carriage returns alone": (b"Ein Hund.\rZwei Hunde.\rDrei.\r", "tr '\\r' '\\n'"),
    "Latin-1": ("Größe\n".encode("latin-1"), "iconv -f LATIN1"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x00", "unzstd"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_is_no_utf8_text_is_named_with_the_command_that_converts_it(
    trained_run: Path, tmp_path: Path, kind: str
) -> None:
    content, advice = UNREADABLE[kind]
    path = tmp_path / "text"
    path.write_bytes(content)
    for given in ({}, {"stdin": content}):
        result = run_mt("translate", trained_run, *([] if given else [path]), **given)
        assert result.returncode == 2
        assert advice in result.stderr
        assert ("standard input" if given else str(path)) in result.stderr
        assert "Traceback" not in result.stderr


def test_a_byte_order_mark_costs_no_points_and_a_comma_may_stand_in_a_name(
    sample: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "v1,final"
    folder.mkdir()
    (folder / "Größe, neu.en").write_bytes(b"\xef\xbb\xbf" + (sample / "test.en").read_bytes())
    for refs in (f"{folder}/Größe, neu.en", f"{sample}/test.en,{folder}/Größe, neu.en"):
        result = run_mt("evaluate", "--hyp", sample / "test.en", "--ref", refs, "--resamples", 0)
        assert "BLEU 100.00" in result.stdout, result.stderr


def test_the_same_text_on_both_sides_is_told(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    result = run_mt("prepare", small_yaml(tmp_path), f"data.train[0].tgt={sample}/train.de")
    assert "contain the same text" in result.stderr


def test_a_pipe_is_no_training_text_and_one_is_fine_for_what_reads_once(
    trained_run: Path, small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given in (tmp_path / "pipe", "'-'"):
        result = run_mt(
            "train", small_yaml(tmp_path), f"data.train[0].src={given}", stdin="Hallo\n"
        )
        assert (result.returncode, "can be read only once" in result.stderr) == (2, True)
        result = run_mt(
            "train", small_yaml(tmp_path), f"data.valid[0].src={given}", stdin="Hallo\n"
        )
        assert (result.returncode, "can be read only once" in result.stderr) == (2, True)
    pipes = f"--src <(head -2 {sample}/test.de) --tgt <(head -2 {sample}/test.en)"
    script = f"{' '.join(COMMAND)} score {trained_run} {pipes} --threads 1"
    scored = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert scored.stdout.count("\n") == 2


# Paths and outputs


def test_home_and_variables_are_expanded_in_every_path(
    small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(sample, home / "text")
    config = small_yaml(tmp_path)
    text = config.read_text().replace(str(sample), "$TEXT").replace(f"{tmp_path}/run", "~/runs/a")
    config.write_text(text.replace("cache_dir: ", "cache_dir: ~/cache #"))
    env = {**os.environ, "HOME": str(home), "TEXT": str(home / "text")}
    assert run_mt("train", config, "train.max_steps=2", env=env).returncode == 0
    assert sorted(path.name for path in home.iterdir()) == ["cache", "runs", "text"]
    assert (
        find_model(home / "runs/a/checkpoints/last").config().data.train[0].src
        == f"{home}/text/train.de"
    )
    unset = run_mt(
        "train", config, env={**env, "TEXT": "", "HOME": str(home)} | {"TEXT": str(sample)}
    )
    assert unset.returncode == 0
    del env["TEXT"]
    missing = run_mt("train", config, env=env)
    assert (missing.returncode, "variable $TEXT is not set" in missing.stderr) == (2, True)


def test_without_a_home_the_cache_folder_is_asked_for(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    env = {key: value for key, value in os.environ.items() if key != "HOME"}
    program = (
        "import os, pwd, sys\n"
        "def nobody(*_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "sys.argv[0] = 'mt'\n"
        "from mt.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "train",
        str(small_yaml(tmp_path)),
        "cache_dir=~/.cache/mt",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert (result.returncode, "this user has no home folder; choose another" in result.stderr) == (
        2,
        True,
    ), result.stderr


@pytest.mark.parametrize("kind", ["folder", "nowhere"])
def test_an_output_that_cannot_be_written_is_told_before_the_work(
    trained_run: Path, sample: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / ("folder" if kind == "folder" else "no/where")
    src, ref = sample / "test.de", sample / "test.en"
    commands = (
        ("translate", trained_run, src),
        ("evaluate", trained_run, "--src", src, "--ref", ref),
        ("report", trained_run),
        ("attend", trained_run, "Hund"),
        ("translate", trained_run, src, "--alignment"),
    )
    for command in commands:
        option = [path] if command[-1] == "--alignment" else ["-o", path]
        result = run_mt(*command, *option)
        assert result.returncode == 2, command
        assert ("a folder; give" if kind == "folder" else "does not exist") in result.stderr
    assert list((tmp_path / "folder").iterdir()) == []


def test_output_goes_into_what_is_there(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    expected = run_mt("translate", trained_run, sample / "test.de").stdout
    (tmp_path / "link").symlink_to("real.txt")
    (tmp_path / "real.txt").write_text("old")
    assert (
        run_mt("translate", trained_run, sample / "test.de", "-o", tmp_path / "link").returncode
        == 0
    )
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.txt").read_text() == expected
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        assert (
            run_mt("translate", trained_run, sample / "test.de", "-o", tmp_path / "pipe").returncode
            == 0
        )
        assert reader.communicate(timeout=20)[0] == expected
    assert (tmp_path / "pipe").is_fifo()
    for redirect in ("| cat", f"> {tmp_path}/redirected; cat {tmp_path}/redirected"):
        command = f"{' '.join(COMMAND)} translate {trained_run} {sample}/test.de"
        script = f"{command} -o /dev/stdout {redirect}"
        assert (
            subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
            ).stdout
            == expected
        )
    full = run_mt("translate", trained_run, sample / "test.de", "-o", "/dev/full")
    assert (full.returncode, "/dev/full: cannot be written: No space left" in full.stderr) == (
        1,
        True,
    )
    assert Path("/dev/full").is_char_device()


def test_what_is_finished_stays_when_a_translation_fails(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    lines = (sample / "test.de").read_bytes()
    (tmp_path / "text.de").write_bytes(lines + b"Gr\xfc\xdfe\n")
    result = run_mt("translate", trained_run, tmp_path / "text.de", "-o", tmp_path / "out.en")
    part = tmp_path / "out.en.part"
    assert result.returncode == 2
    assert f"{part} contains the finished translations of the first 20 lines" in result.stderr
    assert part.read_text() == run_mt("translate", trained_run, sample / "test.de").stdout
    about = json.loads((tmp_path / "out.en.part.json").read_text())
    assert (about["finished_lines"], about["files"]) == (20, [str(tmp_path / "text.de")])
    assert about["decode"]["beam_size"] == 5
    assert not (tmp_path / "out.en").exists()
    assert (
        run_mt("translate", trained_run, sample / "test.de", "-o", tmp_path / "out.en").returncode
        == 0
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.en", "text.de"]
    with (tmp_path / "out.en.part").open("ab") as other:
        assert try_lock(other)
        refused = run_mt("translate", trained_run, sample / "test.de", "-o", tmp_path / "out.en")
        assert refused.returncode == 1
        assert "another process is writing to this file" in refused.stderr
    part.unlink()
    (tmp_path / "bad.de").write_bytes(b"Gr\xfc\xdfe\n")
    run_mt("translate", trained_run, tmp_path / "bad.de", "-o", tmp_path / "none.en")
    assert not list(tmp_path.glob("none.en*"))


def test_a_signal_leaves_what_is_finished(trained_run: Path, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "long.de").write_bytes((sample / "test.de").read_bytes() * 2000)
    command = [
        *COMMAND,
        "translate",
        trained_run,
        tmp_path / "long.de",
        "-o",
        tmp_path / "out.en",
        "--threads",
        "1",
    ]
    part = tmp_path / "out.en.part"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (part.exists() and part.read_bytes().count(b"\n") > FIRST):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        message = process.communicate(timeout=30)[1]
    assert process.returncode == 143
    assert str(part) in message
    assert (
        json.loads(part.with_name("out.en.part.json").read_text())["finished_lines"]
        == part.read_bytes().count(b"\n")
        >= FIRST
    )


# Pipes and standard streams


def test_a_program_that_waits_for_each_answer_gets_it(trained_run: Path) -> None:
    command = [*COMMAND, "translate", trained_run, "--threads", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"Ein Hund.\n", b"Zwei Hunde.\n", b"\n"):
            process.stdin.write(line)
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], 60)
            assert ready
            assert process.stdout.readline().endswith(b"\n")
        process.stdin.close()
        assert process.wait(timeout=30) == 0


CLOSED = {
    "no input, a file": ("translate MODEL TEXT <&-", 0, ""),
    "no input": ("translate MODEL <&-", 2, "standard input is closed"),
    "no errors": ("translate MODEL TEXT 2>&-", 0, ""),
    "no output": ("translate MODEL TEXT >&-", 2, "standard output is closed"),
    "nothing, into a file": ("translate MODEL TEXT -o OUT <&- >&- 2>&-", 0, ""),
    "no output for scores": ("evaluate --hyp TEXT --ref TEXT >&-", 2, "standard output is closed"),
    "no output for likelihoods": (
        "score MODEL --src TEXT --tgt TEXT >&-",
        2,
        "standard output is closed",
    ),
    "a full disk": ("translate MODEL TEXT > /dev/full", 1, "No space left on device"),
    "a full disk for scores": (
        "evaluate --hyp TEXT --ref TEXT > /dev/full",
        1,
        "No space left on device",
    ),
    "training": ("train YAML train.max_steps=2 <&- >&- 2>&-", 0, ""),
    "preparing": ("prepare YAML <&- >&- 2>&-", 0, ""),
}


@pytest.mark.parametrize("kind", CLOSED)
def test_closed_standard_streams(
    trained_run: Path, small_yaml: Callable[..., Path], sample: Path, tmp_path: Path, kind: str
) -> None:
    script, code, message = CLOSED[kind]
    names = {
        "MODEL": trained_run,
        "TEXT": sample / "test.de",
        "OUT": tmp_path / "out",
        "YAML": small_yaml(tmp_path),
    }
    for name, path in names.items():
        script = script.replace(name, str(path))
    result = subprocess.run(
        ["bash", "-c", f"{' '.join(COMMAND)} {script}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


# Copied runs, and runs whose base model is gone


def copied_by_scp(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy)  # follows links


def copied_by_an_object_store(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy, symlinks=True)
    for link in ("last", "best"):
        (copy / "checkpoints" / link).unlink()


def copied_by_zip(run: Path, copy: Path) -> None:
    shutil.copytree(run, copy, symlinks=True)
    for link in ("last", "best"):
        target = (copy / "checkpoints" / link).readlink()
        (copy / "checkpoints" / link).unlink()
        (copy / "checkpoints" / link).write_text(str(target))


@pytest.mark.parametrize("copied", [copied_by_scp, copied_by_an_object_store, copied_by_zip])
def test_a_copied_run_does_all_that_the_run_does(
    trained_run: Path,
    small_yaml: Callable[..., Path],
    sample: Path,
    tmp_path: Path,
    copied: Callable[[Path, Path], None],
) -> None:
    copy = tmp_path / "run"
    copied(trained_run, copy)
    best = (trained_run / "checkpoints/best").readlink().name
    expected = run_mt("translate", trained_run, sample / "test.de").stdout
    assert run_mt("translate", copy, sample / "test.de").stdout == expected
    card = run_mt("evaluate", copy, "--json", "--resamples", 0)
    assert json.loads(card.stdout)[0]["model"] == str(copy / "checkpoints" / best)
    assert run_mt("inspect", copy).returncode == 0
    assert run_mt("average", copy, "--last", 2, "-o", tmp_path / "mean").returncode == 0
    assert run_mt("export", copy, "-o", tmp_path / "ct2", "--lines", 2).returncode == 0
    resumed = run_mt("train", small_yaml(tmp_path), "train.max_steps=16", "train.keep_last=1")
    assert resumed.returncode == 0, resumed.stderr
    folder = copy / "checkpoints"
    assert (folder / "last").readlink() == Path("step_00000016")
    assert (folder / "best").is_symlink()
    assert {path.name for path in folder.iterdir()} == {
        "last",
        "best",
        "step_00000016",
        (folder / "best").readlink().name,
    }


def test_a_run_goes_on_when_its_base_has_trained_on_or_is_gone(
    run: Path, small_yaml: Callable[..., Path], sample: Path, tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    fine = ("train", config, f"run_dir={tmp_path}/fine", "train.metric=loss")
    assert run_mt(*fine, "--init-from", run, "train.max_steps=2").returncode == 0
    assert run_mt("prepare", config, f"train.init_from={run}").returncode == 0
    assert (
        run_mt(
            "train", config, "train.max_steps=16", "train.keep_last=1", "train.keep_best=0"
        ).returncode
        == 0
    )  # the base run trains on
    assert run_mt(*fine, "--init-from", run, "train.max_steps=4").returncode == 0
    shutil.rmtree(run)
    for steps, base in (
        (6, ["--init-from", run]),
        (8, ["--init-from", tmp_path / "elsewhere"]),
        (10, []),
    ):
        result = run_mt(*fine, *base, f"train.max_steps={steps}")
        assert result.returncode == 0, result.stderr
        assert "resuming from" in result.stderr
    assert run_mt("translate", tmp_path / "fine", sample / "test.de").returncode == 0


# Runs from other versions


def test_a_run_of_version_0_1_0_translates_as_it_did_and_goes_on(tmp_path: Path) -> None:
    with tarfile.open(STORED / "0.1.0.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    config = find_model(tmp_path / "runs/run/checkpoints/last").config()
    assert (config.format, config.tokenizer.tgt_normalization, config.decode.longest_src) == (
        1,
        "nmt_nfkc",
        512,
    )
    lines, expected = (
        (tmp_path / name).read_text(encoding="utf-8").splitlines()
        for name in ("text/valid.de", "expected.en")
    )
    translator = Translator.load(tmp_path / "runs/run", precision="fp32", threads=1)
    found = translator.translate(lines)
    differing = [each for each in zip(lines, found, expected, strict=True) if each[1] != each[2]]
    for line, hyp, before in differing:  # on another processor, a tie may be broken differently
        scores = translator.likelihood([(line, hyp), (line, before)])
        ours, stored = (each.log_prob / len(each.log_probs) for each in scores)
        assert abs(ours - stored) < 1e-4, (line, hyp, before)
    goes_on = ("train", "run.yaml", "train.max_steps=124", "train.log_every=1")
    for _ in range(2):  # the second time, both versions have written to the run
        result = run_mt(*goes_on, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert result.returncode == 0, result.stderr
        assert "normalization" not in result.stderr
    entries = map(json.loads, (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines())
    losses = {line["step"]: line["loss"] for line in entries if line["kind"] == "train"}
    assert {step: losses[step] for step in STORED_LOSSES} == pytest.approx(STORED_LOSSES, abs=1e-3)
    last = find_model(tmp_path / "runs/run/checkpoints/last")
    assert last.training_state()["step"] == 124
    assert last.config().tokenizer.src_normalization == "nmt_nfkc"


def test_a_newer_format_is_refused_by_name(run: Path) -> None:
    path = run / "checkpoints/last"
    folder = run / "checkpoints" / path.readlink()
    text = (folder / "config.yaml").read_text()
    assert "format: 2\n" in text
    config = run.parent / "newer.yaml"
    config.write_text(text.replace("format: 2\n", "format: 99\n"))
    result = run_mt("train", config)
    assert (result.returncode, "format: must be at most 2, found 99" in result.stderr) == (2, True)
