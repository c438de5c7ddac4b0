"""`mt evaluate`: score a model or a file of translations, with signatures and intervals."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mt.cli.options import (
    BatchSize,
    BeamSize,
    BleuTokenizer,
    Device,
    LengthPenalty,
    Metric,
    Precision,
    References,
    Sources,
    TargetLanguage,
    Threads,
    WorkerCount,
)

if TYPE_CHECKING:
    from mt.evaluation.evaluate import Scoring


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A model folder, or a run folder to use its best checkpoint.", show_default=False
        ),
    ] = None,
    src: Sources = None,
    ref: References = None,
    hyp: Annotated[
        str | None,
        typer.Option(help="A file with translations to score, instead of a model; needs --ref."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Write the model's translations of --src to this file."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    metric: Metric = None,
    tokenizer: BleuTokenizer = None,
    lang: TargetLanguage = None,
    resamples: Annotated[
        int,
        typer.Option(
            min=0, help="Number of bootstrap resamples for the 95 % intervals; 0 for no intervals."
        ),
    ] = 1000,
    comet: Annotated[
        str | None,
        typer.Option(
            "--comet-command",
            envvar="MT_COMET_COMMAND",
            help="A command that prints a COMET score, for example: "
            "comet-score -s {src} -t {hyp} -r {ref} ...",
        ),
    ] = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    batch_size: BatchSize = None,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    workers: WorkerCount = None,
) -> None:
    """Score a model on test sets, or score a file of translations.

    With a MODEL, translates and scores the test sets of its configuration, or the text given by
    --src and --ref. Saves the translations and a scorecard, which `mt reproduce` reads, in the
    run folder. With --hyp instead of a MODEL, scores that file against --ref.
    """
    from mt.errors import ConfigError

    sources, references = src or [], ref or []
    if (hyp is None) == (model is None):
        raise ConfigError("give either a MODEL or --hyp")
    if hyp is not None and (len(references) != 1 or sources):
        raise ConfigError("--hyp needs one --ref and no --src")
    if output is not None and len(sources) != 1:
        raise ConfigError("--output needs a MODEL with one --src")
    from mt.cli.output import check_output
    from mt.evaluation.comet import CometCommand
    from mt.evaluation.evaluate import Scoring

    check_output(None)
    if output is not None:
        check_output(output)
    if comet is not None and hyp is not None:
        raise ConfigError(
            "COMET needs the source text, so it cannot be used with --hyp; give a MODEL"
        )
    scoring = Scoring(
        tuple(metric or Scoring.metrics),
        tokenizer,
        lang,
        resamples,
        CometCommand(comet) if comet else None,
    )
    if hyp is not None:
        results = [_score_file(hyp, references[0], scoring)]
    else:
        assert model is not None
        options = {
            "beam_size": beam_size,
            "length_penalty": length_penalty,
            "batch_size": batch_size,
            "precision": precision,
            "device": device,
            "threads": threads,
            "workers": workers,
        }
        results = _score_model(model, sources, references, output, scoring, options)
        if not results:  # this process is not rank 0
            return
    typer.echo(
        json.dumps(results, indent=2, ensure_ascii=False)
        if as_json
        else "\n".join(_table(result) for result in results)
    )


def _score_file(hyp: str, ref: str, scoring: "Scoring") -> dict[str, Any]:
    from mt.data.sources import read_text
    from mt.evaluation import corpus_scores
    from mt.evaluation.evaluate import split_references

    metrics, hyps = scoring.build(), read_text(hyp)
    scores = corpus_scores(
        hyps, [read_text(name) for name in split_references(ref)], metrics, scoring.resamples
    )
    return {
        "test": hyp,
        "sentences": len(hyps),
        "scores": [score.as_dict() for score in scores.values()],
    }


def _score_model(
    model: Path,
    sources: list[str],
    references: list[str],
    output: Path | None,
    scoring: "Scoring",
    options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Translate and score the test sets on all ranks. Returns the results, on rank 0 only."""
    from mt.runtime.template import start_template_early

    start_template_early(options["workers"], options["threads"], options["device"])
    from mt.cli.output import write_text
    from mt.evaluation.evaluate import evaluate_model
    from mt.log import setup_logging
    from mt.runtime.world import TRANSLATION_TIMEOUT, join_world

    with join_world(TRANSLATION_TIMEOUT) as world:
        setup_logging(is_rank0=world.is_rank0)
        options["device"] = world.device_for_rank(options["device"])
        options["threads"] = world.threads_per_rank(options["threads"])
        evaluated = evaluate_model(model, scoring, sources, references, options, world)
        if not world.is_rank0:
            return []
        if output is not None:
            write_text(output, "".join(f"{line}\n" for line in evaluated.results[0].hyps))
    details = {
        "model": str(evaluated.folder),
        "beam_size": evaluated.card["decode"]["beam_size"],
        "compute": evaluated.card["compute"],
    }
    return [{**result.as_dict(), **details} for result in evaluated.results]


def _table(result: dict[str, Any]) -> str:
    """Format the scores of one test set, one per line."""
    from mt.evaluation import TITLES

    count = result["sentences"]
    head = f"{result['test']}: {count:,} sentence{'s' if count != 1 else ''}"
    if "model" in result:
        head += f", {result['model']}, beam {result['beam_size']}, {result['compute']}"
        head += f", {result['seconds']:.1f} s"
    width = max(len(TITLES[score["name"]]) for score in result["scores"])
    rows = []
    for score in result["scores"]:
        interval = f" ± {score['interval']['half_width']:.2f}" if "interval" in score else ""
        rows.append(
            f"  {TITLES[score['name']]:{width}} {score['value']:6.2f}"
            f"{interval}  {score['signature']}"
        )
    return "\n".join([head, *rows])
