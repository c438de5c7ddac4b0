"""Tests of the schema: every key has a description, and configs/schema.json is up to date."""

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from mt.cli import build_app
from mt.config import PRESETS, Config, ModelConfig, json_schema, resume_policy

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json_schema()


def leaves() -> list[tuple[str, dict]]:
    """Return (Section.key, JSON Schema) for every key that is not a section itself."""
    parts = {"Config": SCHEMA, **SCHEMA["$defs"]}
    keys = [
        (f"{name}.{key}", spec)
        for name, part in parts.items()
        for key, spec in part["properties"].items()
    ]
    return [(name, spec) for name, spec in keys if "$ref" not in spec]


@pytest.mark.parametrize(("name", "spec"), leaves(), ids=[name for name, _ in leaves()])
def test_every_key_has_a_description_and_a_default(name, spec):
    assert spec.get("description", "").endswith((".", ")", "`"))
    assert "default" in spec or spec.get("type") == "array"


def test_no_key_is_required_and_no_other_key_is_allowed():
    parts = [SCHEMA, *SCHEMA["$defs"].values()]
    assert len(parts) > 8
    assert not any("required" in part for part in parts)
    assert all(part["additionalProperties"] is False for part in parts)


def test_the_schema_file_is_what_mt_config_schema_prints():
    printed = CliRunner().invoke(build_app(), ["config", "schema"]).output
    assert json.loads(printed) == SCHEMA
    assert (ROOT / "configs" / "schema.json").read_text(encoding="utf-8") == printed, (
        "run: mt config schema > configs/schema.json"
    )


def test_the_schema_itself_is_valid_and_named():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "mt configuration"


@pytest.mark.parametrize(
    "sample",
    [
        {},
        {"model": {"preset": "tiny", "embedding_dropout": None}},
        {"data": {"train": [{"src": "a", "tgt": "b"}]}, "optim": {"betas": [0.9, 0.999], "lr": 1}},
        Config().model_dump(),
    ],
)
def test_editors_accept_what_the_loader_accepts(sample):
    jsonschema.validate(sample, SCHEMA)
    assert Config.model_validate(sample)


@pytest.mark.parametrize(
    "sample",
    [
        {"sede": 1},
        {"optim": {"warmup": 1}},
        {"data": {"train": [{"src": "a", "tgt": "b", "x": 1}]}},
        {"seed": "1"},
        {"seed": None},
        {"model": {"norm": "per"}},
        {"optim": {"betas": [0.9]}},
        {"device": "gpu"},
        {"train": None},
    ],
)
def test_editors_refuse_what_the_loader_refuses(sample):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sample, SCHEMA)
    with pytest.raises(ValidationError):
        Config.model_validate(sample)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"model": {"num_heads": 7}}, "num_heads: 7 does not divide d_model 512"),
        ({"model": {"d_model": 7, "num_heads": 7}}, "d_model: 7 is odd"),
        (
            {"model": {"tie_embeddings": "all"}, "tokenizer": {"joint": False}},
            "needs a joint vocabulary",
        ),
        ({"tokenizer": {"src_model": "a"}}, "set both `src_model` and `tgt_model`"),
        ({"train": {"max_steps": None}}, "nothing would end this run"),
        ({"train": {"batch_tokens": 9, "grad_accum_steps": 2}}, "remove `grad_accum_steps`"),
        ({"decode": {"nbest": 6}}, "nbest: 6 is larger than beam_size 5"),
        ({"data": {"train": [{"src": "a"}]}}, "needs `src` and `tgt`"),
        ({"data": {"train": [{"dataset": "d"}]}}, "needs `src_column` and `tgt_column`"),
        ({"data": {"train": [{"dataset": "d", "src": "a"}]}}, "not both"),
        ({"batching": {"max_tokens": 255}}, "255 is below data.filters.max_len 256"),
    ],
)
def test_combinations_that_cannot_work_are_refused(sample, message):
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(sample)


@pytest.mark.parametrize("tokenizer", [{}, {"src_model": "a", "tgt_model": "a", "joint": False}])
def test_a_joint_tokenizer_may_tie_all_embeddings(tokenizer):
    assert Config.model_validate({"tokenizer": tokenizer}).tokenizer.shares_vocabulary


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_accepted_by_the_model_section(name):
    assert ModelConfig.model_validate({"preset": name, **PRESETS[name]}).preset == name


def test_a_configuration_cannot_be_modified():
    config = Config()
    with pytest.raises(ValidationError):
        config.seed = 2


@pytest.mark.parametrize(
    ("key", "policy"),
    [
        ("seed", "fixed"),
        ("device", "may_change"),
        ("model.dropout", "fixed"),
        ("optim.betas[0]", "may_change"),
        ("train.max_steps", "may_change"),
        ("train.label_smoothing", "fixed"),
        ("batching.prefetch", "may_change"),
        ("batching.max_tokens", "fixed"),
        ("data.train[0].src", "same_data"),
        ("data.on_invalid_utf8", "same_data"),
        ("data.filters.max_len", "fixed"),
        ("decode.beam_size", "may_change"),
        ("tokenizer.vocab_size", "fixed"),
    ],
)
def test_the_resume_policy_of_an_option(key: str, policy: str) -> None:
    assert resume_policy(Config, key) == policy
