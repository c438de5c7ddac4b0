"""`mt score`: compute the log-probability and perplexity of given translations."""

import math
import sys
from typing import Annotated, Literal

import typer

from mt.cli.options import Device, ModelPath, Threads, WorkerCount


def score(
    model: ModelPath,
    src: Annotated[str, typer.Option(help="A file with source text.", show_default=False)],
    tgt: Annotated[
        str, typer.Option(help="A file with one translation per line of --src.", show_default=False)
    ],
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto is fp32, so that results are the same on every machine."),
    ] = "auto",
    device: Device = "auto",
    threads: Threads = None,
    workers: WorkerCount = None,
) -> None:
    """Compute the log-probability and perplexity of given translations.

    For each pair of lines from --src and --tgt, prints the log-probability, the number of tokens
    and the perplexity, separated by tabs. Logarithms are natural, and the end-of-sentence token
    counts as a token. Totals are printed to stderr.
    """
    from mt.runtime.template import start_template_early

    start_template_early(workers, threads, device)
    from mt.cli.output import check_output, open_output
    from mt.config import CorpusConfig, DataConfig
    from mt.data.sources import read_parallel
    from mt.decode.translator import Translator
    from mt.log import print_to_stderr, progress_bar
    from mt.runtime.device import PRECISION_NAMES

    check_output(None)
    sources, targets = read_parallel([CorpusConfig(src=src, tgt=tgt)], DataConfig())
    translator = Translator.load(
        model, device=device, precision=precision, threads=threads, workers=workers
    )
    total, num_tokens = 0.0, 0
    with (
        open_output(None) as out,
        progress_bar(lambda: len(sources), "scoring", "line", not sys.stdout.isatty()) as advance,
    ):
        for scored in translator.likelihood(zip(sources, targets, strict=True)):
            count = len(scored.log_probs)
            total, num_tokens = total + scored.log_prob, num_tokens + count
            out.write(
                f"{scored.log_prob:.6f}\t{count}\t{_perplexity(scored.log_prob, count):.4f}\n"
            )
            advance(1)
    perplexity = _perplexity(total, num_tokens)
    summary = f"log-probability {total / num_tokens:.4f} per token, perplexity {perplexity:.4f}"
    print_to_stderr(
        f"{len(sources):,} lines, {num_tokens:,} tokens: {summary}, "
        f"in {PRECISION_NAMES[translator.compute.dtype]}"
    )


def _perplexity(log_prob: float, num_tokens: int) -> float:
    return math.exp(min(-log_prob / num_tokens, 700))
