"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="A model folder, or a run folder to use its best checkpoint.", show_default=False
    ),
]
ConfigFile = Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options that override the file, such as optim.lr=3e-4 train.max_steps=2000.",
        show_default=False,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--src", help="A file with source text; can be repeated (default: the model's test sets)."
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--ref", help="References for each --src, separated by commas if there are several."
    ),
]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--metric",
        help="bleu, chrf, chrf++, ter or legacy-bleu; can be repeated (default: bleu chrf ter).",
    ),
]
BleuTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="sacreBLEU tokenizer for BLEU (default: depends on the target language).",
    ),
]
TargetLanguage = Annotated[
    str | None, typer.Option("--lang", help="Target language (default: data.tgt_lang).")
]
BeamSize = Annotated[
    int | None, typer.Option(help="Beam size; 1 is greedy search (default: the model's).")
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="The exponent a in score = log-probability / length**a.")
]
BatchSize = Annotated[int | None, typer.Option(help="Maximum number of sentences per batch.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    typer.Option(
        help="auto is fp32, so that results are the same on every machine. "
        "bf16, fp16 (on GPUs) and int8 (on CPUs) are faster."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[
    int | None, typer.Option(help="Total number of CPU threads (default: one per core).")
]
WorkerCount = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Number of processes that share the threads (default on CPUs: one per thread).",
    ),
]
