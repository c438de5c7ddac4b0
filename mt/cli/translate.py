"""`mt translate`: translate text files or standard input line by line, in constant memory."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mt.cli.options import (
    BatchSize,
    BeamSize,
    Device,
    LengthPenalty,
    ModelPath,
    Precision,
    Threads,
    WorkerCount,
)

if TYPE_CHECKING:
    from mt.cli.output import Lines
    from mt.decode.output import Written
    from mt.decode.translator import Translator


def translate(
    model: ModelPath,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Text files; can be gzip, bzip2 or xz files (default: standard input).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The output file, compressed if it ends in .gz (default: standard output).",
        ),
    ] = None,
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    nbest: Annotated[
        int | None,
        typer.Option(help="Number of translations per line; needs --format tsv or jsonl."),
    ] = None,
    max_len_a: Annotated[
        float | None,
        typer.Option(
            help="Maximum output length in subwords: max_len_a x source length + max_len_b."
        ),
    ] = None,
    max_len_b: Annotated[
        int | None, typer.Option(help="The constant in the formula of --max-len-a.")
    ] = None,
    batch_size: BatchSize = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Maximum number of source tokens per batch, including padding."),
    ] = None,
    precision: Precision = "auto",
    device: Device = "auto",
    threads: Threads = None,
    workers: WorkerCount = None,
    format: Annotated[
        Literal["text", "tsv", "jsonl"],
        typer.Option(
            help="tsv has line number, rank, score and text; jsonl also has token scores."
        ),
    ] = "text",
    alignment: Annotated[
        Path | None,
        typer.Option(
            help="Write the word alignment of each line to this file, as source-target index pairs."
        ),
    ] = None,
    on_invalid_utf8: Annotated[
        Literal["error", "replace"],
        typer.Option(help="Stop at invalid UTF-8, or replace it with U+FFFD."),
    ] = "error",
) -> None:
    """Translate text files or standard input, line by line.

    Writes one line for each line of the input, in the same order. Empty lines stay empty.
    """
    from mt.errors import ConfigError

    if format == "text" and (nbest or 1) > 1:
        raise ConfigError(
            f"--nbest {nbest} needs --format tsv or jsonl; text has one translation per line"
        )
    _check_outputs(output, alignment)
    from mt.runtime.template import start_template_early

    start_template_early(workers, threads, device)
    from mt.decode.output import outputs, read_ahead, read_live
    from mt.decode.translator import WINDOW, Translator
    from mt.log import setup_logging
    from mt.runtime.world import TRANSLATION_TIMEOUT, join_world

    with join_world(TRANSLATION_TIMEOUT) as world:
        setup_logging(is_rank0=world.is_rank0)
        translator = Translator.load(
            model,
            device=world.device_for_rank(device),
            precision=precision,
            threads=world.threads_per_rank(threads),
            workers=workers,
            beam_size=beam_size,
            length_penalty=length_penalty,
            nbest=nbest,
            max_len_a=max_len_a,
            max_len_b=max_len_b,
            batch_size=batch_size,
            max_tokens=max_tokens,
        )
        names = files or ["-"]
        read = read_ahead if all(Path(name).is_file() for name in names) else read_live
        windows = read(_lines(names, on_invalid_utf8), WINDOW * world.size)
        rows = partial(outputs, world, translator, windows, format, alignment is not None)
        if not world.is_rank0:
            for _ in rows():
                pass
            return
        about = {
            "model": str(model),
            "files": names,
            "format": format,
            "decode": translator.decode.model_dump(),
            "precision": precision,
        }
        num_split = _write(rows, names, output, alignment, about, is_alone=world.is_alone)
        if num_split:
            _report_split_lines(num_split, translator)


def _check_outputs(output: Path | None, alignment: Path | None) -> None:
    """Raise `ConfigError` if an output cannot be written, or if both are the same file."""
    from mt.cli.output import check_output
    from mt.errors import ConfigError

    if alignment is not None and alignment == output:
        raise ConfigError(
            f"--alignment and --output are both {alignment}; give two different files"
        )
    check_output(output)
    if alignment is not None:
        check_output(alignment)


def _report_split_lines(num_split: int, translator: "Translator") -> None:
    from mt.log import print_to_stderr

    options = translator.decode
    limits = f"{options.longest_src} subwords (decode.max_src_len)"
    if isinstance(options.max_sentences, int):
        plural = "s" if options.max_sentences > 1 else ""
        limits += f" or {options.max_sentences} sentence{plural} (decode.max_sentences)"
    lines = "1 line has" if num_split == 1 else f"{num_split:,} lines have"
    print_to_stderr(f"mt: {lines} more than {limits} and were translated in parts")


def _write(
    rows: "Callable[..., Iterable[list[Written]]]",
    names: list[str],
    output: Path | None,
    alignment: Path | None,
    about: dict[str, Any],
    is_alone: bool,
) -> int:
    """Write all translations, and return how many lines were translated in parts."""
    from mt.cli.output import open_output
    from mt.log import progress_bar

    # No progress bar if translations are printed to a terminal, which shows the progress anyway.
    is_shown = output is not None or not sys.stdout.isatty()
    aligned: AbstractContextManager[Lines | None] = (
        nullcontext() if alignment is None else open_output(alignment, about)
    )
    bar = progress_bar(lambda: _count_lines(names), "translating", "line", is_shown)
    num_split = 0
    with open_output(output, about) as out, aligned as pairs, bar as advance:
        for window in rows(on_progress=advance if is_alone else None):
            for line in window:
                out.write(line.text)
                if pairs is not None:
                    pairs.write(f"{line.alignment}\n")
                num_split += line.over_long
            out.flush()
            if not is_alone:
                advance(len(window))
    return num_split


def _lines(files: Iterable[str], on_invalid_utf8: str) -> Iterator[str]:
    from mt.data.sources import CorpusStats, decode_line, text_lines

    remedy = "--on-invalid-utf8 replace"
    for name in files:
        for number, line in enumerate(text_lines(name), 1):
            yield decode_line(
                line,
                f"{'standard input' if name == '-' else name}:{number}",
                on_invalid_utf8,
                CorpusStats(),
                remedy,
            )


def _count_lines(files: list[str]) -> int | None:
    """Return the number of input lines, or None if some input is not a regular file."""
    from mt.files import read_lines

    return (
        None
        if any(not Path(name).is_file() for name in files)
        else sum(1 for name in files for _ in read_lines(name))
    )
