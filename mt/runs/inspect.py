"""`mt inspect`: show what a run, checkpoint or model folder contains, and check its checksums."""

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
    """The contents of a model folder, checkpoint or crash folder."""

    path: str
    kind: str
    step: int | None = None
    languages: str = ""
    model: str = ""
    num_parameters: int = 0
    tokenizer: str = ""
    data: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    compute: str = ""  # device, threads and precision with which the scores were computed
    num_files: int = 0
    num_bytes: int = 0
    written_by: str = ""
    error: str | None = None  # message about the first missing or damaged file


@dataclass(frozen=True)
class RunReport:
    """The contents of a run folder."""

    path: str
    status: dict[str, Any]
    links: dict[str, str]  # maps "last" and "best" to the names of checkpoints
    checkpoints: list[ModelReport]


def inspect(path: Path) -> ModelReport | RunReport:
    """Return a report on a run, checkpoint, crash or model folder.

    Raises `CheckpointError` if `path` is none of these.
    """
    if ModelFolder(path).exists:
        return inspect_model(ModelFolder(path))
    run = RunFolder(path)
    if not run.steps() and not run.status_path.exists():
        problem = "not a run, checkpoint or model folder" if path.exists() else "no such folder"
        raise CheckpointError(f"{path}: {problem}; give a folder that mt has written")
    links = {name: target for name in LINKS if (target := run.link_target(name)) is not None}
    reports = [(model, inspect_model(model)) for model in run.all_checkpoints()]
    # If the run is training, it may have deleted old checkpoints since they were listed.
    existing = [report for model, report in reports if model.path.exists()]
    return RunReport(str(path), run.status(), links, existing)


def inspect_model(folder: ModelFolder) -> ModelReport:
    """Return a report on a model folder, after checking each of its files against the manifest."""
    has_training = folder.training.exists()
    kind = "checkpoint" if has_training else "model folder"
    if folder.batch_path.exists():
        kind = "crash folder"
    try:
        files = folder.verify(with_training=has_training).values()
        config, about = folder.config(), folder.provenance()
        tokenizer, num_parameters = Tokenizer.load(folder.tokenizer), folder.num_parameters()
    except CheckpointError as error:
        return ModelReport(str(folder), kind, error=str(error))
    corpora, scores, step = (about.get(name) for name in ("corpora", "scores", "step"))
    names = ", ".join(map(str, corpora)) if isinstance(corpora, list) else "unknown"
    data = config.data
    return ModelReport(
        str(folder),
        kind,
        step if isinstance(step, int) else None,
        f"{data.src_lang or '?'} -> {data.tgt_lang or '?'}",
        _sizes(config),
        num_parameters,
        _about_tokenizer(config, tokenizer),
        f"{names} ({about.get('data', 'no fingerprint')})",
        {name: value for name, value in scores.items() if isinstance(value, int | float)}
        if isinstance(scores, dict)
        else {},
        str(about.get("compute", "")),
        len(files),
        sum(file["size"] for file in files),
        f"mt {about.get('mt')}, torch {about.get('torch')}",
    )


def _sizes(config: Config) -> str:
    m = config.model
    layers = f"{m.encoder_layers}+{m.decoder_layers} layers, {m.num_heads} heads"
    return f"d_model {m.d_model}, d_ff {m.d_ff}, {layers}, {m.norm}-norm, {m.activation}"


def _about_tokenizer(config: Config, tokenizer: Tokenizer) -> str:
    sizes = f"joint, {tokenizer.src_vocab_size:,}"
    if not tokenizer.is_joint:
        sizes = f"separate, {tokenizer.src_vocab_size:,} and {tokenizer.tgt_vocab_size:,}"
    kind = "given by the user" if config.tokenizer.src_model else config.tokenizer.model_type
    return f"{kind}, {sizes} pieces ({tokenizer.hash})"


def errors(report: ModelReport | RunReport) -> list[str]:
    """Return a message for each folder with missing or damaged files."""
    models = report.checkpoints if isinstance(report, RunReport) else [report]
    return [model.error for model in models if model.error]


def as_json(report: ModelReport | RunReport) -> str:
    """Return the report as JSON."""
    return json.dumps(asdict(report), indent=2, ensure_ascii=False)


def as_text(report: ModelReport | RunReport) -> str:
    """Return the report as a table for the terminal."""
    if isinstance(report, ModelReport):
        return _rows(f"{report.path}: {report.kind}", _facts(report))
    state = f"{report.status.get('state', 'unknown')}: {report.status.get('message', '')}"
    facts = [("state", state.rstrip(": "))]
    intact = [model for model in report.checkpoints if not model.error]
    facts += _about_model(intact[-1]) if intact else []
    for index, model in enumerate(report.checkpoints):
        name = Path(model.path).name
        links = [link for link, target in report.links.items() if target == name]
        state = "DAMAGED" if model.error else ", ".join([_size(model), "files intact", *links])
        summary = "; ".join(filter(None, [name, _scores(model.scores), state]))
        facts.append(("" if index else "checkpoints", summary))
    return _rows(f"{report.path}: run folder", facts)


def _facts(model: ModelReport) -> list[tuple[str, str]]:
    if model.error:
        return [("files", "DAMAGED")]
    scores = ", ".join(filter(None, [_scores(model.scores), model.compute]))
    return [
        ("update", f"{model.step:,}" if model.step is not None else "unknown"),
        *_about_model(model),
        ("scores", scores if model.scores else "none yet"),
        ("files", f"{model.num_files} files, {_size(model)}, all intact"),
    ]


def _size(model: ModelReport) -> str:
    return f"{model.num_bytes / 2**20:,.1f} MiB"


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
