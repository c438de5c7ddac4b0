"""Tests of how `mt.config` reads and writes files: YAML 1.2 values, overrides, presets, and error
messages that say where a mistake is.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from mt.cli import build_app
from mt.config import (
    PRESETS,
    Config,
    config_from_text,
    default_run_dir,
    flatten,
    load_config,
    to_yaml,
)
from mt.config.load import MAX_BYTES, _find_place
from mt.config.reader import MAX_NODES, Place
from mt.errors import ConfigError


def read(text: str, *overrides: str) -> Config:
    return config_from_text(text, "c.yaml", overrides)


def complaints(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return str(caught.value).split("\n")


# Values


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "null\n", "{}\n"])
def test_a_file_without_keys_means_all_defaults(text):
    assert read(text) == Config()


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("N", "N"),
        ("12:30", "12:30"),
        ("1:20:30", "1:20:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        (".inf", ".inf"),
        ("tRue", "tRue"),
        ("nULL", "nULL"),
        ("'null'", "null"),
        ('"3"', "3"),
        ("1.2.3", "1.2.3"),
        ("1__0", "1__0"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("Größe", "Größe"),
        ('"\\U0001F600"', "😀"),
    ],
)
def test_text_that_yaml_1_1_reads_as_another_type_stays_text(written, value):
    assert read(f"cache_dir: {written}").cache_dir == value


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("3e-4", 3e-4),
        ("1e9", 1e9),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+.5e1", 5.0),
        ("7", 7.0),
    ],
)
def test_numbers_are_numbers_however_they_are_written(written, value):
    lr = read(f"optim: {{lr: {written}}}").optim.lr
    assert lr == value
    assert isinstance(lr, float)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("10", 10),
        ("+10", 10),
        ("010", 10),
        ("1_000", 1000),
        ("1e4", 10_000),
        ("2.0", 2),
        ("0x1f", 31),
        ("0o17", 15),
    ],
)
def test_whole_numbers_may_be_written_as_practitioners_do(written, value):
    steps = read(f"train: {{max_steps: {written}}}").train.max_steps
    assert steps == value
    assert isinstance(steps, int)


@pytest.mark.parametrize("written", ["true", "True", "TRUE"])
def test_true_in_any_usual_case_is_a_boolean(written):
    assert read(f"tokenizer: {{byte_fallback: false, joint: {written}}}").tokenizer.joint is True


@pytest.mark.parametrize("written", ["null", "~", "Null", "NULL", ""])
def test_null_is_none_where_the_schema_allows_it(written):
    assert read(f"train:\n  patience: 3\n  max_steps: {written}\n").train.max_steps is None


def test_anchors_and_merges_work_and_copies_are_independent():
    text = (
        "data:\n  train: &t\n  - &c {src: a, tgt: b}\n  valid: *t\n  test:\n  - {<<: *c, tgt: e}\n"
    )
    data = read(text, "data.valid.0.src=z").data
    assert [c.src for c in (data.train[0], data.valid[0], data.test[0])] == ["a", "z", "a"]
    assert data.test[0].tgt == "e"


def test_the_first_of_several_merges_wins():
    merged = read(
        "data: {train: [{<<: [{src: a, tgt: b}, {src: c, tgt: d, name: n}]}]}"
    ).data.train[0]
    assert (merged.src, merged.tgt, merged.name) == ("a", "b", "n")


# Mistakes


def test_all_mistakes_of_file_and_overrides_are_reported_together_in_order():
    text = """\
model:
  num_heads: 7
optim:
  warmup: 4000
  lr: fast
train:
  max_steps: many
  lr: 1
data:
  train:
    - src: a
"""
    assert complaints(text, "train.max_stesp=5", "valid.samples=x") == [
        "c.yaml:2: model.num_heads: 7 does not divide d_model 512",
        "c.yaml:4: optim.warmup: unknown key (did you mean `warmup_steps`?)",
        "c.yaml:5: optim.lr: expected a number, found 'fast'",
        "c.yaml:7: train.max_steps: expected a whole number, found 'many'",
        "c.yaml:8: train.lr: unknown key (did you mean `optim.lr`?)",
        "c.yaml:11: data.train[0]: needs `src` and `tgt` (text files) or `dataset`, `src_column` "
        "and `tgt_column`",
        "override `train.max_stesp=5`: unknown key (did you mean `max_steps`?)",
        "override `valid.samples=x`: expected a whole number, found 'x'",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  norm: per",
            "2: model.norm: expected one of pre, post, found 'per' (did you mean `pre`?)",
        ),
        (
            "model: {preset: bgi}",
            "1: model.preset: expected one of tiny, small, base, big, found 'bgi' "
            "(did you mean `big`?)",
        ),
        ("precision: no", "1: precision: expected one of auto, fp32, bf16, fp16, found 'no'"),
        ("seed: 1.5", "1: seed: expected a whole number, found 1.5"),
        ("seed: 1e300", "1: seed: expected a whole number, found 1e+300"),
        ("seed: true", "1: seed: expected a whole number, found true"),
        ("seed: null", "1: seed: expected a whole number, found null"),
        ("seed: -1", "1: seed: must be at least 0, found -1"),
        ("format: 0", "1: format: must be at least 1, found 0"),
        ("seed: 2147483648", "1: seed: must be below 2147483648, found 2147483648"),
        ("cache_dir: 3", "1: cache_dir: expected text, found 3 (put it in quotes)"),
        ("cache_dir: [a]", "1: cache_dir: expected text, found ['a']"),
        ("tokenizer: {joint: yes}", "1: tokenizer.joint: expected true or false, found 'yes'"),
        ("tokenizer: {joint: 1}", "1: tokenizer.joint: expected true or false, found 1"),
        (
            "tokenizer: {character_coverage: 2}",
            "1: tokenizer.character_coverage: must be at most 1, found 2",
        ),
        ("optim: {lr: 0}", "1: optim.lr: must be above 0, found 0"),
        ("optim: {eps: 1e999}", "1: optim.eps: expected a finite number, found inf"),
        ("optim: {betas: [0.9]}", "1: optim.betas: expected 2 or more items, found [0.9]"),
        ("optim: {betas: [0, 0, 0]}", "1: optim.betas: expected at most 2 items, found [0, 0, 0]"),
        (
            "optim:\n\n  betas: [0, 2]",
            "3: optim.betas: [0.0, 2.0]: each must be at least 0 and below 1",
        ),
        ("optim: {betas: [0, x]}", "1: optim.betas[1]: expected a number, found 'x'"),
        (
            "train: {batch_tokens: 9, grad_accum_steps: 2}",
            "1: train: `batch_tokens` sets the number of micro-batches; remove `grad_accum_steps`",
        ),
        (
            "device: gpu",
            r"1: device: expected text that matches ^(auto|cpu|cuda(:\d+)?)$, found 'gpu'",
        ),
        ("train:\n", "1: train: expected a section of `key: value` lines, found null"),
        ("data: {train: {src: a}}", "1: data.train: expected a list, found {'src': 'a'}"),
        ("model: {d_model: 100}", "1: model.num_heads: 8 does not divide d_model 100"),
        (
            "batching:\n  max_tokens: 16",
            "2: batching.max_tokens: 16 is below data.filters.max_len 256: the longest "
            "sentences would not fit in a micro-batch",
        ),
        ("vaild: {}", "1: vaild: unknown key (did you mean `valid`?)"),
        ("lr: 1", "1: lr: unknown key (did you mean `optim.lr`?)"),
        (
            "train: {max_tokens: 1}",
            "1: train.max_tokens: unknown key (did you mean `batching.max_tokens` or "
            "`decode.max_tokens`?)",
        ),
        (
            "train: {warmup_step: 1}",
            "1: train.warmup_step: unknown key (did you mean `optim.warmup_steps`?)",
        ),
        (
            "data: {test: [{srcc: a, src: a, tgt: b}]}",
            "1: data.test[0].srcc: unknown key (did you mean `src`?)",
        ),
        ("train: {batch: 1}", "1: train.batch: unknown key (did you mean `batch_tokens`?)"),
        ("zzzzqqqq: 1", "1: zzzzqqqq: unknown key"),
        (
            "cache_dir: '" + "x" * 100 + "'\nseed: '" + "y" * 100 + "'",
            f"2: seed: expected a whole number, found '{'y' * 58}…",
        ),
    ],
)
def test_a_mistake_is_reported_in_plain_words_with_its_line(text, message):
    assert complaints(text) == [f"c.yaml:{message}"]


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("seed: 1\nseed: 2", 2, "seed: already set on line 1"),
        ("optim:\n  lr: 1\n  eps: 1\n  lr: 2", 4, "optim.lr: already set on line 2"),
        ("a: [1", 1, "not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("seed: 1\n\tx: 2", 2, "not valid YAML: "),
        ("seed: 1\na: b: c", 2, "not valid YAML: mapping values are not allowed here"),
        ("seed: 1\n---\nseed: 2", 2, "not valid YAML: expected a single document in the stream"),
        ("seed: *x", 1, "not valid YAML: found undefined alias 'x'"),
        ("seed: 1\ncache_dir: 'a\0b'", 2, "not valid YAML: special characters are not allowed"),
        ('cache_dir: "\\UFFFFFFFF"', 1, "not valid YAML: "),
        ("%YAML " + "1" * 10_000 + ".1\n---\n", 1, "not valid YAML: "),
        ("- a", 1, "expected `key: value` lines, found ['a']"),
        ("just text", 1, "expected `key: value` lines, found 'just text'"),
        ("seed: 1\n2: x", 2, "a key must be printable text"),
        ("true: x", 1, "a key must be printable text"),
        ("? [a]\n: x", 1, "a key must be printable text"),
        ("optim:\n  <<: 3", 2, "optim: `<<` can only merge sections"),
        ('cache_dir: "\\ud800"', 1, "cache_dir: half a surrogate pair is not valid text"),
        ("seed: " + "9" * 100_000, 1, "seed: 999"),
        ("seed: 0x" + "f" * 100_000, 1, "seed: 0xf"),
        ("seed: 99999999999999999999", 1, "seed: 99999999999999999999 does not fit in 64 bits"),
        ("seed: !!int 3", 1, "seed: tag `!!int` is not allowed"),
        ("optim: !mine {lr: 1}", 1, "optim: tag `!mine` is not allowed"),
        ("optim:\n  betas: ! [0, 0]", 2, "optim.betas: tag `!` is not allowed"),
        ("seed: !<int> many", 1, "seed: tag `int` is not allowed"),
        ("!a b: 3", 1, "a key must be printable text"),
    ],
)
def test_invalid_or_forbidden_yaml_is_one_message_with_its_line(text, line, part):
    (message,) = complaints(text)
    assert message.startswith(f"c.yaml:{line}: {part}")
    assert len(message) < 250


def test_a_value_refused_by_the_reader_neither_hides_nor_repeats_mistakes():
    text = "seed: !!int 3\nlr: 1\ntrain: {max_steps: x}\nseed: 3\n1: 2\n"
    lines = [message.split(":")[1] for message in complaints(text)]
    assert lines == ["1", "2", "3", "4", "5"]


def test_a_python_tag_is_refused_and_not_executed(tmp_path):
    trace = tmp_path / "trace"
    (message,) = complaints(f"cache_dir: !!python/object/apply:os.system ['touch {trace}']")
    assert (
        message
        == "c.yaml:1: cache_dir: tag `!!python/object/apply:os.system` is not allowed; leave it out"
    )
    assert not trace.exists()


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
MERGES = "m0: &m0 {a: 1}\n" + "".join(
    f"m{i}: &m{i} {{<<: [*m{i - 1}, *m{i - 1}]}}\n" for i in range(1, 60)
)
CHAIN = "m0: &m0 {a: 1}\n" + "".join(f"m{i}: &m{i} {{<<: *m{i - 1}}}\n" for i in range(1, 3000))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        CHAIN,
        "a: &a [*a]",
        "a: &a {b: *a}",
        "a: &a {<<: *a}",
        "[" * 100_000,
        "{" * 100_000,
        "- " * 9_000,
        "? " * 9_000,
        "[" + "x," * (MAX_NODES + 1) + "]",
    ],
    ids=[
        "laughs",
        "merges",
        "chain",
        "cycle",
        "cycle of sections",
        "cycle of merges",
        "lists",
        "sections",
        "dashes",
        "keys",
        "long",
    ],
)
def test_bombs_are_refused_within_a_second(text):
    start = time.process_time()  # not wall time: the machine may be busy
    (message,) = complaints(text)
    assert time.process_time() - start < 1
    assert message.endswith("more than 10,000 values or 40 levels, with aliases expanded")


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        ('"a\\nb\\e[31m\\ud800": 1', "seed=1", "c.yaml:1: a key must be printable text"),
        ('"\\ud800": 1', "seed=1", "c.yaml:1: a key must be printable text"),
        (
            'seed: "\\e[31m\\n"',
            "optim.lr=1",
            r"c.yaml:1: seed: expected a whole number, found '\x1b[31m\n'",
        ),
        ("", "a\n\x1b\udc80=1", r"override `a\n\x1b\udc80=1`: expected key=value"),
        ("", "seed=\udc80", r"override `seed=\udc80`: not valid YAML"),
    ],
)
def test_a_message_is_one_printable_line_whatever_the_file_contains(text, override, message):
    (line,) = complaints(text, override)
    assert line.startswith(message)
    assert line.isprintable()


# Files


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"seed: 1\ncache_dir: \xff\n", ":2: byte 0xff is not valid UTF-8"),
        (b"#" * (MAX_BYTES + 1), ": a configuration can have at most 1,000,000 bytes"),
        ("# ä".encode() * MAX_BYTES, ": a configuration can have at most 1,000,000 bytes"),
    ],
)
def test_a_file_that_is_not_text_is_reported_by_name(tmp_path, raw, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}{message}"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "nul\0.yaml"])
def test_a_file_that_cannot_be_opened_is_reported_by_name(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be read: ") as caught:
        load_config(f"{tmp_path}/{name}")
    assert str(caught.value).startswith(f"{tmp_path}/{name}: ")


def test_a_byte_order_mark_is_not_part_of_the_first_key(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(path).seed == 3


def test_the_run_folder_is_named_after_the_file_unless_it_is_set(tmp_path):
    path = tmp_path / "iwslt14.v2.yaml"
    path.write_text("seed: 3\n")
    assert load_config(str(path)).run_dir == default_run_dir(path) == "runs/iwslt14.v2"
    assert load_config(path, ["run_dir=elsewhere"]).run_dir == "elsewhere"


def test_messages_contain_the_path_as_the_user_gave_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text("\nsede: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config("a.yaml")
    assert str(caught.value) == "a.yaml:2: sede: unknown key (did you mean `seed`?)"
    assert caught.value.exit_code == 2


# Presets and overrides


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_sizes_and_explicit_keys_override_it(name):
    model = read(f"model: {{preset: {name}, dropout: 0.25}}").model
    assert model.model_dump() == {
        **Config().model.model_dump(),
        "preset": name,
        **PRESETS[name],
        "dropout": 0.25,
    }


def test_a_preset_may_come_from_an_override():
    model = read("model: {num_heads: 2}", "model.preset=tiny", "model.d_ff=64").model
    assert (model.d_model, model.num_heads, model.d_ff) == (128, 2, 64)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("train.max_steps=1e3", "train.max_steps", 1000),
        ("train.max_epochs=", "train.max_epochs", None),
        ("data.src_lang=no", "data.src_lang", "no"),
        ("run_dir=a=b", "run_dir", "a=b"),
        ("optim.betas=[0.5, 0.6]", "optim.betas", [0.5, 0.6]),
        ("optim.betas[1]=0.7", "optim.betas", [0.9, 0.7]),
        ("data.train=[{src: x, tgt: y}]", "data.train[0].tgt", "y"),
        ("data.train.0.src=x", "data.train[0].src", "x"),
        ("data.train[0].src=x", "data.train[0].src", "x"),
        ("decode={beam_size: 2}", "decode.beam_size", 2),
        ("data.filters.max_len=12", "data.filters.max_len", 12),
    ],
)
def test_an_override_sets_its_key(override, key, value):
    text = "optim: {betas: [0.9, 0.8]}\ndata: {train: [{src: a, tgt: b}]}\ntrain: {max_epochs: 3}"
    assert flatten(read(text, override))[key] == value
    assert flatten(read(text))[key] != value if key in flatten(read(text)) else value is not None


def test_the_last_override_of_a_key_wins():
    assert read("seed: 1", "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key=value, such as optim.lr=3e-4"),
        ("=3", "expected key=value, such as optim.lr=3e-4"),
        ("optim..lr=3", "expected key=value, such as optim.lr=3e-4"),
        ("seed=[", "not valid YAML: "),
        ("seed=!!int 3", "tag `!!int` is not allowed; leave it out"),
        ("decode={nbest: 1, nbest: 2}", "decode.nbest: already set on line 1"),
        ("cache_dir.x=1", "'a' has no keys"),
        ("data.train[1].src=x", "no such list item in the file"),
        ("data.train.src=x", "[{'src': 'a', 'tgt': 'b'}] has no keys"),
        ("data.valid[0].src=x", "no such list item in the file"),
        ("0=x", "no such list item in the file"),
        ("data.train[99999999999].src=x", "no such list item in the file"),
        ("optim.betas[0]=0.8", "no such list item in the file"),
        ("x.y=1", "x: unknown key"),
        ("model.d_model=100", "model.num_heads: 8 does not divide d_model 100"),
        ("model.num_heads=7", "7 does not divide d_model 512"),
        (
            "data.train=[{src: 1, tgt: b}]",
            "data.train[0].src: expected text, found 1 (put it in quotes)",
        ),
        ("tokenizer.joint=false", "model.tie_embeddings: `all` needs a joint vocabulary"),
        ("train.grad_accum_steps=2", "train: `batch_tokens` sets the number of micro-batches"),
    ],
)
def test_a_mistake_in_an_override_quotes_the_override(override, message):
    text = "cache_dir: a\ndata: {train: [{src: a, tgt: b}]}\ntrain:\n  batch_tokens: 100\n"
    (line,) = complaints(text, override)
    assert line.startswith(f"override `{override}`: {message}")


def test_an_override_is_not_reported_for_a_mistake_in_the_file():
    assert complaints("model: {d_model: 100}", "model.dropout=0.2") == [
        "c.yaml:1: model.num_heads: 8 does not divide d_model 100"
    ]


@pytest.mark.parametrize(
    ("lines", "overrides", "key", "message", "expected"),
    [
        # The place that sets the key itself is reported, or else the innermost section around the
        # key, or else the file.
        (["model", "model.norm"], [], "model.norm", "", "line 2"),
        (["model", "model.norm"], ["model.norm"], "model.norm", "", "override 1"),
        (["model"], [], "model.norm", "", "line 1"),
        (["data", "data.filters"], [], "data.filters.max_len", "", "line 2"),
        (["data"], ["data.filters"], "data.filters.max_len", "", "override 1"),
        (["train"], [], "model.norm", "", "the file"),
        # When only overrides set a section: the last override is reported.
        ([], ["model.norm", "model.d_ff"], "model", "", "override 2"),
        # When the message names a key: overrides take precedence over lines in the file, and later
        # places over earlier ones.
        (["model", "model.d_model"], [], "model.num_heads", "num_heads: d_model", "line 2"),
        (["model", "model.d_model"], [], "model.num_heads", "num_heads: bad", "line 1"),
        (["model.num_heads"], ["model.d_model"], "model.num_heads", "d_model", "override 1"),
        (["model.d_model"], ["model.num_heads"], "model.num_heads", "d_model", "override 1"),
        ([], ["model.d_model", "model.d_ff"], "model.norm", "d_model and d_ff", "override 2"),
        (["model.d_model", "model.norm"], [], "model.norm", "norm and d_model", "line 2"),
        (["model", "model.d_model"], [], "model.norm", "norm and x.d_model", "line 1"),
    ],
)
def test_a_mistake_is_reported_for_its_most_likely_cause(lines, overrides, key, message, expected):
    places = {}
    for number, name in enumerate(lines, 1):
        places[tuple(name.split("."))] = Place(number, f"line {number}")
    for number, name in enumerate(overrides, 1):
        path = tuple(name.split("."))
        places[path] = Place(MAX_BYTES + number, f"override {number}", path)
    path = tuple(key.split("."))
    section = path[:1] if message else path
    assert _find_place(path, section, message, places, "the file").text == expected


def test_an_override_of_a_wrong_value_repairs_it():
    assert read("train: {max_steps: many}", "train.max_steps=5").train.max_steps == 5


# Writing

ODD_TEXTS = [
    "no",
    "Yes",
    "12:30",
    "3e-4",
    "1_000",
    "0x1f",
    "0o7",
    "010",
    "null",
    "",
    "~",
    "two\nlines\n",
    "Größe 😀",
    "- a",
    "a: b",
    "#x",
    "'",
    '"',
    " x ",
    "\x85\u2028\t",
    ".inf",
    "=",
    "<<",
    "2024-01-01",
    "y",
    "{",
    "*a",
    "&a",
    "!t",
    "%",
    "@",
    "`",
    "on",
    "true",
    "---",
    "...",
    "x" * 300 + " y" * 100,
]
texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text())


def odd_config(words: list[str]) -> Config:
    corpora = [{"src": word, "tgt": words[0]} for word in words]
    return Config.model_validate(
        {"run_dir": words[0], "cache_dir": words[-1], "data": {"train": corpora}}
    )


# How `~` and variables in paths are expanded is tested in tests/test_situations.py.
paths = texts.filter(lambda word: "$" not in word and not word.startswith("~"))


@given(st.lists(paths, min_size=1, max_size=4), st.booleans())
def test_whatever_text_is_written_reads_back_equal(words, full):
    config = odd_config(words)
    written = to_yaml(config, full)
    assert config_from_text(written, "c.yaml") == config


@given(texts)
def test_a_yaml_1_1_reader_reads_the_same_text(word):
    assert yaml.safe_load(to_yaml(odd_config([word])))["cache_dir"] == word


@pytest.mark.parametrize("word", ["y", "N", "yes", "Off", "3e-4", "0o7"])
def test_words_that_only_some_readers_misread_are_quoted(word):
    assert f'run_dir: "{word}"\n' in to_yaml(odd_config([word]))


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_every_number_reads_back_equal(lr):
    config = Config.model_validate({"optim": {"lr": lr}})
    assert config_from_text(to_yaml(config, full=False), "c.yaml") == config


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "model: {preset: tiny}",
        "model: {preset: tiny, d_model: 512}",
        "train: {max_steps: null, patience: 2}",
        "data: {train: [{src: a, tgt: b}, {dataset: d, src_column: s, tgt_column: t}]}",
        "optim: {betas: [0, 0.5]}",
    ],
)
def test_a_written_configuration_reads_back_equal(text, full):
    assert read(to_yaml(read(text), full)) == read(text)


def test_the_short_form_has_what_differs_and_the_full_form_every_key():
    config = read(
        "seed: 1\nmodel: {preset: tiny, d_model: 512, d_ff: 512}\ndata: {test: [{src: a, tgt: b}]}"
    )
    assert to_yaml(config, full=False) == (
        "data:\n  test:\n  - src: a\n    tgt: b\nmodel:\n  preset: tiny\n  d_model: 512\n"
    )
    assert flatten(read(to_yaml(config))).keys() == flatten(config).keys()
    assert to_yaml(config).count("\n") > len(Config.model_fields) * 5
    assert "betas: [0.9, 0.98]\n" in to_yaml(config)


def test_flatten_names_every_value_by_its_dotted_key():
    flat = flatten(read("data: {train: [{src: a, tgt: b}, {src: c, tgt: d}]}"))
    assert flat["data.train[1].src"] == "c"
    assert flat["data.valid"] == []
    assert flat["optim.betas"] == [0.9, 0.98]
    assert flat["seed"] == 1
    assert "optim" not in flat


# Command line and import


def run_mt(*words: str):
    return CliRunner().invoke(build_app(), ["config", *words])


def test_config_show_prints_what_the_file_and_overrides_resolve_to(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("model: {preset: tiny}\n")
    short, full = run_mt("show", str(path), "seed=3"), run_mt("show", str(path), "seed=3", "--full")
    assert short.output == "run_dir: runs/toy\nseed: 3\nmodel:\n  preset: tiny\n"
    assert read(full.output) == read(short.output) == load_config(path, ["seed=3"])
    assert "  d_model: 128\n" in full.output


def test_config_show_raises_a_config_error_for_a_mistake(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("sede: 1\n")
    assert isinstance(run_mt("show", str(path)).exception, ConfigError)


def test_importing_the_configuration_imports_nothing_heavy():
    code = (
        "import sys, mt.config, mt.cli.config; "
        "print({'torch', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
