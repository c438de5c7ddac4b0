"""`mt evaluate`: BLEU, chrF and TER with their signatures, of a model or of translations that are there already."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mt.metrics import Score


def register(app: typer.Typer) -> None:
    """Add `mt evaluate`."""
    app.command()(evaluate)


def evaluate(
    model: Annotated[Path | None, typer.Argument(help="A model folder, or a run folder (its best checkpoint).", show_default=False)] = None,
    src: Annotated[str | None, typer.Option(help="Source text (default: the test sets of the model's configuration).")] = None,
    ref: Annotated[str | None, typer.Option(help="Reference translations.")] = None,
    hyp: Annotated[str | None, typer.Option(help="Translations to score instead of a model's.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the model's translations of --src there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    beam_size: Annotated[int | None, typer.Option(help="Beams (default: the model's own).")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="a in score = log-probability / length**a.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences a batch, at most.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], typer.Option(help="auto: bf16 where the hardware has it.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads in all (default: one a core).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the threads (default on a CPU: one a thread).")] = None,
) -> None:
    """Score a model on its test sets or on --src and --ref; or score --hyp against --ref without a model."""
    from mt.errors import ConfigError

    if (hyp is None) == (model is None):
        raise ConfigError("give either a MODEL or --hyp")
    if (hyp is not None and (ref is None or src is not None)) or (hyp is None and (src is None) != (ref is None)):
        raise ConfigError("--hyp needs --ref alone; a MODEL needs --src and --ref, or neither for the test sets of its configuration")
    if output is not None and src is None:
        raise ConfigError("--output needs a MODEL with --src")
    if hyp is not None and ref is not None:
        results = [_score_file(hyp, ref)]
    else:
        options = {"beam_size": beam_size, "length_penalty": length_penalty, "batch_size": batch_size}
        assert model is not None
        compute = {"precision": precision, "device": device, "threads": threads, "workers": workers}
        results = _score_model(model, src, ref, output, options, compute)
    typer.echo(json.dumps(results, indent=2, ensure_ascii=False) if as_json else "\n".join(_table(result) for result in results))


def _score_file(hyp: str, ref: str) -> dict[str, Any]:
    from mt.data.corpus import read_text
    from mt.metrics import corpus_scores

    hyps, refs = read_text(hyp), read_text(ref)
    return _result(hyp, len(refs), corpus_scores(hyps, refs))


def _score_model(
    model: Path, src: str | None, ref: str | None, output: Path | None, options: dict[str, Any], compute: dict[str, Any]
) -> list[dict[str, Any]]:
    from mt.checkpoint import read_config, resolve_model
    from mt.config import CorpusConfig
    from mt.data.corpus import read_parallel
    from mt.decode.translator import Translator
    from mt.errors import ConfigError
    from mt.evaluate import evaluate as score
    from mt.files import atomic_write
    from mt.log import setup_logging

    setup_logging()
    folder = resolve_model(model)
    data = read_config(folder).data
    tests = [CorpusConfig(src=src, tgt=ref)] if src is not None else data.test
    if not tests:
        raise ConfigError(f"{folder}: its configuration names no data.test; give --src and --ref")
    texts = [read_parallel([test], data) for test in tests]  # a missing file shows before minutes of translating
    translator = Translator.load(folder, **compute, **options)
    results = []
    for test, (sources, refs) in zip(tests, texts, strict=True):
        found = score(translator, sources, refs)
        if output is not None:
            atomic_write(output, "".join(f"{line}\n" for line in found.hyps))
        compute_used = translator.compute.describe(translator.workers.threads)
        about = {"model": str(folder), "beam_size": translator.decode.beam_size, "compute": compute_used}
        results.append({**_result(test.label, len(refs), found.scores), "seconds": round(found.seconds, 2), **about})
    return results


def _result(name: str, sentences: int, scores: "dict[str, Score]") -> dict[str, Any]:
    return {"test": name, "sentences": sentences, "scores": [score.as_dict() for score in scores.values()]}


def _table(result: dict[str, Any]) -> str:
    from mt.metrics import TITLES

    head = f"{result['test']}: {result['sentences']:,} sentences"
    if "model" in result:
        head += f", {result['model']}, beam {result['beam_size']}, {result['compute']}, {result['seconds']:.1f} s"
    rows = [f"  {TITLES[score['name']]:5} {score['value']:6.2f}  {score['signature']}" for score in result["scores"]]
    return "\n".join([head, *rows])
