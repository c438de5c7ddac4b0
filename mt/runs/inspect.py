"""What a folder is: a run, a checkpoint or a model; what is in it, and whether every byte is as it
was written.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mt.artifacts import ModelFolder, RunFolder
from mt.artifacts.run_folder import LINKS
from mt.config import Config
from mt.data.tokenizer import Tokenizer
from mt.errors import CheckpointError
from mt.evaluation import TITLES


@dataclass(frozen=True)
class ModelReport:
    """One model folder, checkpoint or crash folder."""

    path: str
    kind: str
    step: int | None = None
    languages: str = ""
    model: str = ""
    num_parameters: int = 0
    tokenizer: str = ""
    data: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    compute: str = ""  # what the scores were computed with
    num_files: int = 0
    num_bytes: int = 0
    written_by: str = ""
    error: str | None = None  # the first file that is not as written


@dataclass(frozen=True)
class RunReport:
    """A run folder."""

    path: str
    status: dict[str, Any]
    links: dict[str, str]  # last, best: the checkpoint's name
    checkpoints: list[ModelReport]


def inspect(path: Path) -> ModelReport | RunReport:
    """Look into a run, checkpoint, crash or model folder. Raises `CheckpointError` for a path that
    is none.
    """
    if ModelFolder(path).exists:
        return inspect_model(ModelFolder(path))
    run = RunFolder(path)
    if not run.steps() and not run.status_path.exists():
        found = "not a run, checkpoint or model folder" if path.exists() else "no such folder"
        raise CheckpointError(f"{path}: {found}; give a folder that mt wrote")
    links = {name: target for name in LINKS if (target := run.link_target(name)) is not None}
    reports = [(model, inspect_model(model)) for model in run.all_checkpoints()]
    # A run that goes on deletes old ones meanwhile.
    there = [report for model, report in reports if model.path.exists()]
    return RunReport(str(path), run.status(), links, there)


def inspect_model(folder: ModelFolder) -> ModelReport:
    """Look into a model folder and check every file of it against the manifest."""
    has_training = folder.training.exists()
    kind = (
        "crash folder"
        if folder.batch_path.exists()
        else "checkpoint"
        if has_training
        else "model folder"
    )
    try:
        files = folder.verify(with_training=has_training).values()
        config, about = folder.config(), folder.provenance()
        tokenizer, num_parameters = Tokenizer.load(folder.tokenizer), folder.num_parameters()
    except CheckpointError as error:
        return ModelReport(str(folder), kind, error=str(error))
    corpora = (
        ", ".join(map(str, about["corpora"]))
        if isinstance(about.get("corpora"), list)
        else "unknown"
    )
    scores, step = about.get("scores"), about.get("step")
    scores = (
        {name: value for name, value in scores.items() if isinstance(value, int | float)}
        if isinstance(scores, dict)
        else {}
    )
    return ModelReport(
        str(folder), kind, step if isinstance(step, int) else None, f"{config.data.src_lang or '?'} -> {config.data.tgt_lang or '?'}",
        _sizes(config), num_parameters, _about_tokenizer(config, tokenizer), f"{corpora} ({about.get('data', 'no fingerprint')})",
        scores, str(about.get("compute", "")),
        len(files), sum(file["size"] for file in files), f"mt {about.get('mt')}, torch {about.get('torch')}",
    )  # fmt: skip


def _sizes(config: Config) -> str:
    m = config.model
    layers = f"{m.encoder_layers}+{m.decoder_layers} layers"
    return f"d_model {m.d_model}, d_ff {m.d_ff}, {layers}, {m.num_heads} heads, {m.norm}-norm, {m.activation}"


def _about_tokenizer(config: Config, tokenizer: Tokenizer) -> str:
    sizes = (
        [f"{tokenizer.src_vocab_size:,}"]
        if tokenizer.is_joint
        else [f"{tokenizer.src_vocab_size:,}", f"{tokenizer.tgt_vocab_size:,}"]
    )
    kind = "trained before" if config.tokenizer.src_model else config.tokenizer.model_type
    return f"{kind}, {'joint' if tokenizer.is_joint else 'one a side'}, {' and '.join(sizes)} pieces ({tokenizer.hash})"


def broken(report: ModelReport | RunReport) -> list[str]:
    """What is not as it was written, a line each."""
    models = report.checkpoints if isinstance(report, RunReport) else [report]
    return [model.error for model in models if model.error]


def as_json(report: ModelReport | RunReport) -> str:
    """The report for programs."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False)


def as_text(report: ModelReport | RunReport) -> str:
    """The report for people."""
    if isinstance(report, ModelReport):
        return _rows(f"{report.path}: {report.kind}", _facts(report))
    status = report.status
    facts = [
        ("state", f"{status.get('state', 'unknown')}: {status.get('message', '')}".rstrip(": "))
    ]
    whole = [model for model in report.checkpoints if not model.error]
    facts += _about_model(whole[-1]) if whole else []
    for index, model in enumerate(report.checkpoints):
        name = Path(model.path).name
        marks = [mark for mark, target in report.links.items() if target == name]
        state = (
            "DAMAGED"
            if model.error
            else ", ".join([f"{model.num_bytes / 2**20:,.1f} MiB", "every file as written", *marks])
        )
        facts.append(
            (
                "" if index else "checkpoints",
                "; ".join(filter(None, [name, _scores(model.scores), state])),
            )
        )
    return _rows(f"{report.path}: run folder", facts)


def _facts(model: ModelReport) -> list[tuple[str, str]]:
    if model.error:
        return [("files", "DAMAGED")]
    return [
        ("update", f"{model.step:,}" if model.step is not None else "unknown"),
        *_about_model(model),
        (
            "scores",
            ", ".join(filter(None, [_scores(model.scores), model.compute]))
            if model.scores
            else "none yet",
        ),
        (
            "files",
            f"{model.num_files} files, {model.num_bytes / 2**20:,.1f} MiB, every one as written",
        ),
    ]


def _about_model(model: ModelReport) -> list[tuple[str, str]]:
    return [
        ("languages", model.languages),
        ("model", f"{model.model}; {model.num_parameters:,} parameters"),
        ("tokenizer", model.tokenizer),
        ("data", model.data),
        ("written by", model.written_by),
    ]


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(
        f"{TITLES.get(name, name)} {value:.{3 if name == 'loss' else 2}f}"
        for name, value in scores.items()
    )


def _rows(title: str, facts: Sequence[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:12} {value}" for name, value in facts)])
