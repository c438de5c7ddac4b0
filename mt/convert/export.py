"""Export and proof: a model as another engine's folder, and both engines on the same text."""

import itertools
import tempfile
from pathlib import Path
from typing import Literal

import torch

from mt.config import Config
from mt.convert.ctranslate2 import QUANTIZATIONS, CTranslate2Engine, export_ctranslate2
from mt.convert.huggingface import TransformersEngine, check_tokenizer, export_huggingface
from mt.convert.onnx import OnnxModel, export_onnx
from mt.convert.proof import OurEngine, Parity, compare
from mt.data.sources import read_text
from mt.decode.loading import LoadedModel, load_model
from mt.decode.translator import Translator
from mt.errors import ConfigError, DataError, ExportError
from mt.runtime.device import set_up_compute

Target = Literal["ctranslate2", "marian", "pegasus", "onnx"]
TITLES: dict[Target, str] = {
    "ctranslate2": "CTranslate2", "marian": "transformers (Marian)", "pegasus": "transformers (Pegasus)", "onnx": "onnxruntime",
}  # fmt: skip


def export_and_prove(
    model: Path, out: Path, to: Target, quantization: str | None, text: str | None, num_lines: int
) -> list[str]:
    """Write `out` and return what is to be said about it, line by line.

    The proof is that of weights in fp32; for others it is counted how many lines stay the same.
    Raises `ExportError` where the proof fails: nothing is left then.
    """
    if quantization is not None and to != "ctranslate2":
        raise ConfigError(
            f"--quantization is for --to ctranslate2; {TITLES[to]} is written in fp32"
        )
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ConfigError(f"--quantization: {quantization!r} is none of {', '.join(QUANTIZATIONS)}")
    if out.exists():
        raise ExportError(f"{out}: exists already; choose another folder")
    loaded = load_model(model, torch.device("cpu"))
    source, lines = proof_text(loaded.config, text) if num_lines else ("", [])
    lines = lines[:num_lines]
    report = []
    if lines:
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder) / "exact"
            write_export(to, loaded, exact)
            parity = prove_export(to, loaded, exact, lines)
        if not parity.holds:
            raise ExportError(
                "\n".join(
                    [f"{out} was not written: the engines disagree; {parity}", *_worst(parity)]
                )
            )
        report.append(f"{source}, in fp32: {parity}")
    write_export(to, loaded, out, quantization)
    if lines and quantization:
        report.append(
            f"{quantization}, beside fp32: {prove_export(to, loaded, out, lines, compute_type='default')}"
        )
    if not lines:
        report.append(
            "not proven: "
            + ("no lines were asked for" if not num_lines else "no text at hand; give --prove FILE")
        )
    return [
        f"{out}: {loaded.folder.path.name} for {TITLES[to]}, weights in {quantization or 'float32'}",
        *report,
    ]


def write_export(
    to: Target, loaded: LoadedModel, out: Path, quantization: str | None = None
) -> None:
    """Write a model in a format, unproven. Raises `ExportError`."""
    if to == "ctranslate2":
        export_ctranslate2(loaded, out, quantization)
    elif to == "onnx":
        export_onnx(loaded, out)
    else:
        export_huggingface(loaded, out, to)


def proof_text(config: Config, text: str | None) -> tuple[str, list[str]]:
    """The name and the lines of a text file, or of the first test or validation source of the
    configuration that is there.
    """
    if text is not None:
        return text, list(read_text(text))
    for corpus in itertools.chain(config.data.test, config.data.valid):
        if corpus.src is not None and Path(corpus.src).exists():
            try:
                return corpus.src, list(read_text(corpus.src))
            except DataError:
                continue
    return "", []


def prove_export(
    to: Target,
    loaded: LoadedModel,
    folder: Path,
    lines: list[str],
    beam_size: int | None = None,
    compute_type: str = "float32",
) -> Parity:
    """The original and its export on the same text, searching as the model says or with so many
    beams.
    """
    decode = loaded.config.decode.model_copy(
        update={"nbest": 1, **({} if beam_size is None else {"beam_size": beam_size})}
    )
    compute = set_up_compute("cpu", "fp32", None)
    translator = Translator(loaded.model, loaded.tokenizer, decode, compute)
    if to == "ctranslate2":
        return compare(
            translator,
            CTranslate2Engine(
                folder, loaded.tokenizer, decode, torch.get_num_threads(), 1, compute_type
            ),
            lines,
        )
    if to == "onnx":
        onnx = OnnxModel(folder, torch.get_num_threads())
        theirs = Translator(loaded.model, loaded.tokenizer, decode, compute, step_model=onnx)
        return compare(translator, OurEngine(theirs), lines)
    engine = TransformersEngine(folder, decode)
    if to == "marian":
        check_tokenizer(folder, loaded.tokenizer, lines)
    return compare(translator, engine, lines)


def _worst(parity: Parity) -> list[str]:
    worst = sorted(parity.differences, key=lambda difference: -difference.gap)[:5]
    return [
        f"  line {d.line}, {d.gap:.1e} apart\n    mt: {d.ours}\n    it: {d.theirs}" for d in worst
    ]
