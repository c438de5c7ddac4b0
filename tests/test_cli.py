"""The command line: it starts quickly, explains mistakes clearly, and translates like a call from
Python.
"""

import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_mt, run_on_terminal

HEAVY = ("torch", "datasets", "sentencepiece", "numpy", "sacrebleu")


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["train", "--help"],
        ["config", "show", "no-such.yaml"],
        ["train", "no-such.yaml"],
    ],
)
def test_help_and_config_errors_import_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['mt', *sys.argv[1:]]\nfrom mt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n"
        f"    loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "    print('loaded', loaded, 'code', error.code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *args],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    code_expected = 0 if "--help" in args else 2
    assert result.stdout.strip().endswith(f"loaded [] code {code_expected}"), (
        result.stdout + result.stderr
    )


def test_mt_and_python_m_mt_tell_the_same_version() -> None:
    assert run_mt("--version").stdout.startswith("mt 0.")


def test_translate_gives_a_line_for_a_line(trained_run: Path, sample: Path) -> None:
    lines = (sample / "test.de").read_text(encoding="utf-8").split("\n")[:5]
    result = run_mt(
        "translate", trained_run, stdin="\n".join([*lines, "", "Hallo\u2028Welt"]) + "\n"
    )
    assert result.returncode == 0, result.stderr
    out = result.stdout.split("\n")
    assert len(out) == 8
    assert out[5] == ""
    assert all(out[:5])


def test_the_python_call_gives_what_the_command_gives(trained_run: Path, sample: Path) -> None:
    from mt import Translator

    text = (sample / "test.de").read_text(encoding="utf-8")
    command = run_mt("translate", trained_run, stdin=text).stdout
    assert (
        Translator.load(trained_run, threads=1).translate(text.split("\n")[:-1])
        == command.split("\n")[:-1]
    )


COMMANDS = {
    "translate": ["MODEL"],
    "evaluate": ["MODEL"],
    "compare": ["MODEL", "MODEL"],
    "score": ["MODEL", "--src", "SRC", "--tgt", "SRC"],
    "report": ["MODEL"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_fp16_is_a_precision_and_a_cpu_refuses_it(
    command: str, trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run, symlinks=True)
    names = {"MODEL": run, "SRC": sample / "test.de"}
    arguments = [names.get(argument, argument) for argument in COMMANDS[command]]
    result = run_mt(command, *arguments, "--precision", "fp16", "--device", "cpu")
    assert result.returncode == 2, result.stdout + result.stderr
    assert "precision: fp16 is for GPUs; a CPU computes in fp32" in result.stderr


def test_a_process_that_lost_a_rank_ends_at_once_with_its_code_and_message() -> None:
    """Otherwise, the GPU might wait for the lost rank, and the interpreter for the GPU."""
    code = (
        "import atexit\nfrom unittest.mock import patch\nfrom mt import cli\n"
        "from mt.errors import MTError, RankLostError\n"
        "def lose():\n    raise {error}('rank 1 is gone')\n"
        "atexit.register(lambda: print('unwound'))\n"
        "with patch.object(cli, 'build_app', lambda: lose):\n    cli.main()"
    )
    for error, said in (("RankLostError", ""), ("MTError", "unwound\n")):
        command = [sys.executable, "-c", code.format(error=error)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        ended = result.returncode, result.stdout, result.stderr
        assert ended == (1, said, "rank 1 is gone\n")


def test_several_workers_give_what_one_gives(trained_run: Path, sample: Path) -> None:
    results = [
        run_mt(
            "translate",
            trained_run,
            sample / "test.de",
            "--workers",
            n,
            "--threads",
            2,
            "--batch-size",
            8,
        )
        for n in (1, 2)
    ]
    assert [result.returncode for result in results] == [0, 0], results[1].stderr
    assert results[0].stdout == results[1].stdout
    assert [result.stderr for result in results] == ["", ""]


def test_on_a_terminal_a_bar_tells_lines_speed_and_what_is_left(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    arguments = (
        "translate",
        trained_run,
        sample / "test.de",
        "-o",
        tmp_path / "out",
        "--batch-size",
        1,
    )
    shown = run_on_terminal(*arguments, rows=30, columns=100)
    bars = shown.replace("\r", "\n").split("\n")
    count = (tmp_path / "out").read_bytes().count(b"\n")
    assert any(
        re.search(rf"translating: +\d+%.* \d+/{count} \[\d\d:\d\d<\d\d:\d\d, +[\d.]+line/s\]", bar)
        for bar in bars
    ), bars


def test_files_gz_and_output_names_are_understood(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    text = (sample / "test.de").read_bytes()
    (tmp_path / "in.gz").write_bytes(gzip.compress(text))
    assert (
        run_mt("translate", trained_run, tmp_path / "in.gz", "-o", tmp_path / "out.gz").returncode
        == 0
    )
    expected = run_mt("translate", trained_run, sample / "test.de").stdout
    assert gzip.decompress((tmp_path / "out.gz").read_bytes()).decode() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.gz", "out.gz"]


def test_tsv_lists_line_rank_score_and_translation(trained_run: Path, sample: Path) -> None:
    result = run_mt(
        "translate",
        trained_run,
        sample / "test.de",
        "--format",
        "tsv",
        "--nbest",
        3,
        "--beam-size",
        4,
    )
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows[:4]] == [["1", "1"], ["1", "2"], ["1", "3"], ["2", "1"]]
    assert float(rows[0][2]) >= float(rows[1][2]) >= float(rows[2][2])
    best = run_mt(
        "translate", trained_run, sample / "test.de", "--beam-size", 4
    ).stdout.splitlines()
    assert [row[3] for row in rows if row[1] == "1"] == best


def test_jsonl_tells_tokens_their_scores_and_over_long_lines(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    lines = (sample / "test.de").read_text(encoding="utf-8").split("\n")[:3]
    lines = [*lines, "", " ".join(lines * 60)]
    (tmp_path / "in").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = ["--format", "jsonl", "--nbest", 2, "--workers", 2, "--threads", 2]
    result = run_mt("translate", trained_run, tmp_path / "in", *options)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.split("\n")[:-1]]
    assert [(row["line"], row["source"], row["over_long"]) for row in rows] == [
        (i, line, i == 5) for i, line in enumerate(lines, 1)
    ]
    assert [len(row["translations"]) for row in rows] == [2, 2, 2, 1, 2]
    assert rows[3]["translations"] == [{"text": "", "score": 0.0, "tokens": [], "token_scores": []}]
    for row in rows[:3]:
        for each in row["translations"]:
            assert len(each["tokens"]) == len(each["token_scores"])
            assert each["tokens"][-1] == "</s>"
            assert each["text"].startswith(each["tokens"][0].strip("\u2581"))
            with_end, without = (
                sum(scores) / len(scores)
                for scores in (each["token_scores"], each["token_scores"][:-1])
            )
            assert (
                min(abs(each["score"] - with_end), abs(each["score"] - without)) < 1e-4
            )  # a translation cut off at its length limit has no end-of-sentence token
    assert rows[4]["translations"][0]["tokens"].count("</s>") > 1
    texts = run_mt("translate", trained_run, tmp_path / "in").stdout.split("\n")[:-1]
    assert [row["translations"][0]["text"] for row in rows] == texts


def test_alignment_is_a_line_of_word_pairs_for_each_line(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    lines = (sample / "test.de").read_text(encoding="utf-8").split("\n")[:-1]
    lines[3] = ""
    (tmp_path / "in").write_text("\n".join(lines) + "\n", encoding="utf-8")
    result = run_mt("translate", trained_run, tmp_path / "in", "--alignment", tmp_path / "pairs")
    assert result.returncode == 0, result.stderr
    assert result.stdout == run_mt("translate", trained_run, tmp_path / "in").stdout
    aligned = (tmp_path / "pairs").read_text(encoding="ascii").split("\n")
    assert len(aligned) == len(lines) + 1
    assert aligned[3] == aligned[-1] == ""
    for line, text, pairs in zip(lines, result.stdout.split("\n")[:-1], aligned[:-1], strict=True):
        numbers = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
        assert sorted(tgt for _, tgt in numbers) == list(range(len(text.split())))
        assert all(0 <= src < len(line.split()) for src, _ in numbers)


def test_alignment_is_the_same_by_several_workers_and_of_the_best_translation(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    options = {
        "one": ["--workers", 1],
        "two": ["--workers", 2, "--threads", 2],
        "tsv.gz": ["--format", "tsv", "--nbest", 2],
    }
    for name, extra in options.items():
        result = run_mt(
            "translate", trained_run, sample / "test.de", "--alignment", tmp_path / name, *extra
        )
        assert result.returncode == 0, result.stderr
    one = (tmp_path / "one").read_bytes()
    assert one.count(b"\n") == 20
    assert (
        one
        == (tmp_path / "two").read_bytes()
        == gzip.decompress((tmp_path / "tsv.gz").read_bytes())
    )


def test_alignment_and_translations_need_a_file_each(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    result = run_mt(
        "translate",
        trained_run,
        sample / "test.de",
        "--alignment",
        tmp_path / "x",
        "-o",
        tmp_path / "x",
    )
    assert result.returncode == 2
    assert "give two different files" in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_reader_that_leaves_early_ends_the_command_quietly(
    trained_run: Path, sample: Path
) -> None:
    command = f"'{sys.executable}' -m mt translate '{trained_run}' '{sample}/test.de' | true"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert result.stderr == ""


def test_evaluate_scores_the_test_sets_of_the_configuration(trained_run: Path) -> None:
    result = run_mt("evaluate", trained_run, "--json")
    assert result.returncode == 0, result.stderr
    (entry,) = json.loads(result.stdout)
    assert entry["test"] == "tiny test"
    assert entry["sentences"] == 20
    assert [score["name"] for score in entry["scores"]] == ["bleu", "chrf", "ter"]
    assert entry["scores"][0]["signature"].startswith(
        "nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:13a"
    )
    table = run_mt("evaluate", trained_run).stdout
    assert "BLEU" in table
    assert "nrefs:1" in table


def test_evaluate_of_a_file_equals_evaluate_of_the_model_that_wrote_it(
    trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    files = ("--src", sample / "test.de", "--ref", sample / "test.en")
    model = json.loads(
        run_mt("evaluate", trained_run, *files, "-o", tmp_path / "hyp", "--json").stdout
    )
    file = json.loads(
        run_mt("evaluate", "--hyp", tmp_path / "hyp", "--ref", sample / "test.en", "--json").stdout
    )
    assert file[0]["scores"] == model[0]["scores"]


def test_average_of_the_last_two_is_their_mean(trained_run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    result = run_mt("average", trained_run, "--last", 2, "-o", tmp_path / "mean")
    assert result.returncode == 0, result.stderr
    first, second = (
        load_file(trained_run / f"checkpoints/step_{step:08d}/model.safetensors")
        for step in (8, 12)
    )
    mean = load_file(tmp_path / "mean/model.safetensors")
    name = "encoder.layers.0.fc1.weight"
    assert mean[name].allclose((first[name] + second[name]) / 2, atol=1e-7)
    assert run_mt("translate", tmp_path / "mean", stdin="Hallo\n").returncode == 0


def test_a_moved_model_folder_translates_alone(trained_run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree((trained_run / "checkpoints/best").resolve(), moved)
    shutil.rmtree(moved / "training")
    here = run_mt(
        "translate",
        moved,
        stdin="Der Hund schläft.\n",
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert here.returncode == 0, here.stderr
    assert here.stdout == run_mt("translate", trained_run, stdin="Der Hund schläft.\n").stdout


def test_prepare_fills_the_cache_that_train_uses(
    small_yaml: Callable[..., Path], tmp_path: Path
) -> None:
    config = small_yaml(tmp_path)
    first = run_mt("prepare", config)
    assert first.returncode == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert json.loads((folder / "manifest.json").read_text())["pairs"] == 400
    before = (folder / "manifest.json").stat().st_mtime_ns
    run_mt("prepare", config)
    assert (folder / "manifest.json").stat().st_mtime_ns == before
