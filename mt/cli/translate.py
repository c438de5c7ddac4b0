"""`mt translate`: text files or standard input through a model, in input order and constant memory."""

import gzip
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, cast

import typer

if TYPE_CHECKING:
    from mt.decode.translator import Translation


def register(app: typer.Typer) -> None:
    """Add `mt translate`."""
    app.command()(translate)


def translate(
    model: Annotated[Path, typer.Argument(help="A model folder, or a run folder (its best checkpoint).", show_default=False)],
    files: Annotated[list[str] | None, typer.Argument(help="Text files, .gz by name (default: stdin).", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Output file, .gz by name (default: standard output).")] = None,
    beam_size: Annotated[int | None, typer.Option(help="Beams; 1 is greedy search (default here and below: the model's own).")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="a in score = log-probability / length**a.")] = None,
    nbest: Annotated[int | None, typer.Option(help="Translations a line; needs --format tsv.")] = None,
    max_len_a: Annotated[float | None, typer.Option(help="At most max_len_a x source subwords + max_len_b subwords.")] = None,
    max_len_b: Annotated[int | None, typer.Option(help="See --max-len-a.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences a batch, at most.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Source tokens a batch, padding counted, at most.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], typer.Option(help="auto: bf16 where the hardware has it.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads in all (default: one a core).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that share the threads (default on a CPU: one a thread).")] = None,
    format: Annotated[Literal["text", "tsv"], typer.Option(help="tsv: line number, rank, score, translation.")] = "text",
    on_invalid_utf8: Annotated[Literal["error", "replace"], typer.Option(help="Stop there, or put U+FFFD in place.")] = "error",
) -> None:
    """Translate text: one line out for each line in, in the same order. An empty line stays empty."""
    from mt.errors import ConfigError

    if format == "text" and (nbest or 1) > 1:
        raise ConfigError(f"--nbest {nbest} needs --format tsv: as text, each line has one translation")
    from mt.decode.translator import Translator
    from mt.log import progress_bar, setup_logging

    setup_logging()
    translator = Translator.load(
        model, device=device, precision=precision, threads=threads, workers=workers, beam_size=beam_size,
        length_penalty=length_penalty, nbest=nbest, max_len_a=max_len_a, max_len_b=max_len_b, batch_size=batch_size, max_tokens=max_tokens,
    )  # fmt: skip
    names = files or ["-"]
    found = translator.translate_stream(_lines(names, on_invalid_utf8))
    is_shown = output is not None or not sys.stdout.isatty()  # else the translations themselves show how far it is
    with _open_output(output) as out, progress_bar(lambda: _count_lines(names), "translating", "line", is_shown) as advance:
        translator.on_progress = advance
        for line in _formatted(found, format):
            out.write(line.encode())
    if translator.num_split:
        limit = translator.decode.max_src_len
        sys.stderr.write(f"mt: {translator.num_split} lines of more than {limit} subwords were translated in parts (decode.max_src_len)\n")


def _lines(files: Iterable[str], on_invalid_utf8: str) -> Iterator[str]:
    from mt.data.corpus import CorpusStats, decode_line
    from mt.files import read_lines

    for name in files:
        for number, line in enumerate(read_lines(name), 1):
            yield decode_line(line, f"{'standard input' if name == '-' else name}:{number}", on_invalid_utf8, CorpusStats())


def _count_lines(files: list[str]) -> int | None:
    from mt.files import read_lines

    return None if any(not Path(name).is_file() for name in files) else sum(1 for name in files for _ in read_lines(name))


def _formatted(found: Iterable[list["Translation"]], format: str) -> Iterator[str]:
    for number, translations in enumerate(found, 1):
        if format == "text":
            yield f"{translations[0].text}\n"
            continue
        for rank, translation in enumerate(translations, 1):
            text = translation.text.replace("\t", " ")
            yield f"{number}\t{rank}\t{translation.score:.6f}\t{text}\n"


@contextmanager
def _open_output(path: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears under its name when all is written."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with gzip.open(temporary, "wb") if path.suffix == ".gz" else temporary.open("wb") as handle:
            yield cast(BinaryIO, handle)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
