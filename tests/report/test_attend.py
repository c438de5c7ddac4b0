"""Test `mt attend`, which shows attention maps on a terminal, in a log, or as an SVG."""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import run_mt, run_on_terminal

SENTENCE = "Der Hund schläft."
TITLES = ["Encoder: self-attention", "Decoder: masked self-attention", "Decoder: cross-attention"]
ONE_OF_ONE = "layer 1 of 1, mean of 2 heads"


def test_the_default_is_a_map_of_each_kind_over_the_models_own_translation(
    trained_run: Path,
) -> None:
    from mt import Translator

    result = run_mt("attend", trained_run, SENTENCE)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"^(.*), layer.*$", result.stdout, re.MULTILINE) == TITLES
    assert result.stdout.count(ONE_OF_ONE) == 3
    translator = Translator.load(trained_run)
    [text] = translator.translate([SENTENCE])
    assert result.stdout.startswith(f"source       {SENTENCE}\ntranslation  {text}\n")
    [ids] = translator.tokenizer.encode_src([SENTENCE])
    first = translator.tokenizer.src_pieces[ids[0]].replace("\u2581", "_")
    assert re.search(rf"^ *{re.escape(first)} .*\d$", result.stdout, re.MULTILINE)


def test_the_numbers_are_the_percentages_of_the_weights(trained_run: Path) -> None:
    from mt.report.attention import attend

    out = run_mt("attend", trained_run, SENTENCE, "--kind", "encoder", "--head", 2).stdout
    attended = attend(trained_run, SENTENCE)
    count = len(attended.src_tokens)
    # Before the rows are two lines of text, an empty line, a title, a note and all column labels.
    rows = out.split("\n")[5 + count : -1]
    assert len(rows) == count
    for line, weights in zip(rows, attended.maps.encoder[0, 1].tolist(), strict=True):
        cells = line[-3 * count :]
        percent = [f"{100 * weight:.0f}" for weight in weights]
        assert [cells[i : i + 3].strip() for i in range(0, len(cells), 3)] == [
            "." if each == "0" else each for each in percent
        ]


def test_a_translation_can_be_forced(trained_run: Path) -> None:
    result = run_mt("attend", trained_run, SENTENCE, "--target", "A small dog", "--kind", "cross")
    assert result.returncode == 0, result.stderr
    assert "translation  A small dog\n" in result.stdout
    assert [title in result.stdout for title in TITLES] == [False, False, True]


def test_an_svg_holds_every_map_asked_for(trained_run: Path, tmp_path: Path) -> None:
    result = run_mt(
        "attend",
        trained_run,
        SENTENCE,
        "--layer",
        "all",
        "--head",
        "all",
        "-o",
        tmp_path / "map.svg",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path}/map.svg: 6 maps\n"
    svg = ElementTree.parse(tmp_path / "map.svg").getroot()
    texts = [each.text or "" for each in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == SENTENCE
    assert [text for text in texts if text in TITLES] == TITLES
    assert [text for text in texts if text.startswith("layer")] == [
        f"layer 1 of 1, head {head} of 2" for _ in range(3) for head in (1, 2)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["map.svg"]


def test_on_a_terminal_there_are_shades_in_colour(trained_run: Path) -> None:
    environment = {
        **os.environ,
        "COLUMNS": "60",
        "COLORTERM": "truecolor",
        "TERM": "xterm-256color",
        "PYTHONUTF8": "1",
    }
    text = run_on_terminal("attend", trained_run, SENTENCE, rows=50, columns=60, env=environment)
    assert "\u2588\u2588" in text
    assert re.search(r"\x1b\[38;2;\d+;\d+;\d+m", text)
    assert "; percent" not in text
    maps = [
        line
        for line in re.sub(r"\x1b\[[\d;]*m", "", text).split("\r\n")
        if re.search("[\u2502\u2588\u2591-\u2593]", line)
    ]
    assert max(map(len, maps)) <= 60


def test_characters_that_the_terminal_cannot_show_are_escaped(trained_run: Path) -> None:
    result = run_mt(
        "attend",
        trained_run,
        SENTENCE,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert "source       Der Hund schl\\xe4ft." in result.stdout


MISTAKES = {
    "empty": (["", ()], 2, ["SENTENCE", "'' is empty"]),
    "blank": ([" \t", ()], 2, ["SENTENCE", "is empty", "give at least one word"]),
    "not UTF-8": ([b"abc\xff", ()], 2, ["SENTENCE: character 4 is not valid UTF-8"]),
    "empty target": ([SENTENCE, ("--target", " ")], 2, ["--target", "is empty"]),
    "too long": (["x y " * 1000, ()], 2, ["SENTENCE", "subwords", "at most 512"]),
    "layer": (
        [SENTENCE, ("--layer", "2")],
        2,
        ["--layer 2: the encoder has layers 1 to 1; give a number, all"],
    ),
    "layer 0": (
        [SENTENCE, ("--layer", "0", "--kind", "cross")],
        2,
        ["--layer 0: the decoder has layers 1 to 1"],
    ),
    "head": (
        [SENTENCE, ("--head", "3")],
        2,
        ["--head 3: a layer has heads 1 to 2; give a number, all or mean"],
    ),
    "no number": ([SENTENCE, ("--head", "first")], 2, ["--head first: a layer has heads 1 to 2"]),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_exits_2_and_says_what_to_do(kind: str, trained_run: Path) -> None:
    (sentence, options), code, says = MISTAKES[kind]
    result = run_mt(
        "attend",
        trained_run,
        *options,
        "--",
        os.fsdecode(sentence) if isinstance(sentence, bytes) else sentence,
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    for text in says:
        assert text in result.stderr, result.stderr
    assert not result.stdout


def test_a_missing_model_exits_1(tmp_path: Path) -> None:
    result = run_mt("attend", tmp_path / "nowhere", SENTENCE)
    assert result.returncode == 1
    assert "nowhere: no such folder" in result.stderr
