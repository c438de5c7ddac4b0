"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelPath = Annotated[
    Path,
    typer.Argument(
        help="A model folder, or a run folder (its best checkpoint).", show_default=False
    ),
]
ConfigFile = Annotated[Path, typer.Argument(help="The YAML file of the run.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Options to override, such as optim.lr=3e-4 train.max_steps=2000.", show_default=False
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--src", help="Source text; can be repeated (default: the test sets of the model)."
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option("--ref", help="Reference for each --src; several references for one source: a,b."),
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
    typer.Option("--tokenizer", help="sacreBLEU's tokenizer for BLEU (default: by language)."),
]
TargetLanguage = Annotated[
    str | None, typer.Option("--lang", help="Target language (default: data.tgt_lang).")
]
BeamSize = Annotated[
    int | None, typer.Option(help="Beam size; 1 is greedy search (default: the model's).")
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="The exponent a of score = log-probability / length**a.")
]
BatchSize = Annotated[int | None, typer.Option(help="Maximum number of sentences per batch.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16", "int8"],
    typer.Option(
        help="auto is fp32, so that every machine gives the same result. "
        "Faster: bf16; fp16 on GPUs; int8 on CPUs."
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
        help="Worker processes, which share the threads (default on a CPU: one per thread).",
    ),
]
