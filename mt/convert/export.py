"""Export a model for another engine, and verify that both give the same translations."""

import itertools
import tempfile
from pathlib import Path
from typing import Literal

import torch

from mt.config import Config
from mt.convert.ctranslate2 import QUANTIZATIONS, CTranslate2Engine, export_ctranslate2
from mt.convert.extras import check_is_new
from mt.convert.huggingface import TransformersEngine, check_tokenizer, export_huggingface
from mt.convert.onnx import OnnxModel, export_onnx
from mt.convert.parity import Engine, MTEngine, Parity, compare
from mt.data.sources import read_text
from mt.decode.loading import LoadedModel, load_model
from mt.decode.translator import Translator
from mt.errors import ConfigError, DataError, ExportError
from mt.runtime.device import set_up_compute

Target = Literal["ctranslate2", "marian", "pegasus", "onnx"]
TITLES: dict[Target, str] = {
    "ctranslate2": "CTranslate2",
    "marian": "transformers (Marian)",
    "pegasus": "transformers (Pegasus)",
    "onnx": "onnxruntime",
}


def export_and_verify(
    model: Path, out: Path, to: Target, quantization: str | None, text: str | None, num_lines: int
) -> list[str]:
    """Write the export to `out`, and return a report, one string per line.

    Translations are compared with those of an fp32 export. For a `quantization`, the report also
    counts how many translations stay the same. Raises `ExportError` if the engines disagree, and
    then writes nothing.
    """
    if quantization is not None and to != "ctranslate2":
        raise ConfigError(f"--quantization needs --to ctranslate2; {TITLES[to]} exports are fp32")
    if quantization is not None and quantization not in QUANTIZATIONS:
        names = ", ".join(QUANTIZATIONS)
        raise ConfigError(f"--quantization: {quantization!r} is not one of {names}")
    check_is_new(out)
    loaded = load_model(model, torch.device("cpu"))
    source, lines = text_to_verify_with(loaded.config, text) if num_lines else ("", [])
    lines = lines[:num_lines]
    name, weights = loaded.folder.path.name, quantization or "float32"
    report = [f"{out}: {name} for {TITLES[to]}, weights in {weights}"]
    if lines:
        with tempfile.TemporaryDirectory() as folder:
            exact = Path(folder) / "exact"
            write_export(to, loaded, exact)
            parity = verify_export(to, loaded, exact, lines)
        if not parity.holds:
            head = f"{out} was not written, because the engines disagree: {parity}"
            raise ExportError("\n".join([head, *_worst(parity)]))
        report.append(f"{source}, in fp32: {parity}")
    write_export(to, loaded, out, quantization)
    if lines and quantization:
        parity = verify_export(to, loaded, out, lines, compute_type="default")
        report.append(f"{quantization} compared with fp32: {parity}")
    if not lines:
        reason = "no text was found; use --prove FILE" if num_lines else "--lines is 0"
        report.append(f"not verified: {reason}")
    return report


def write_export(
    to: Target, loaded: LoadedModel, out: Path, quantization: str | None = None
) -> None:
    """Write an export without verifying it. Raises `ExportError` if the model is not supported."""
    if to == "ctranslate2":
        export_ctranslate2(loaded, out, quantization)
    elif to == "onnx":
        export_onnx(loaded, out)
    else:
        export_huggingface(loaded, out, to)


def text_to_verify_with(config: Config, text: str | None) -> tuple[str, list[str]]:
    """Return the name and lines of the text to compare translations of.

    This is the file `text`, or by default the first readable source file among the test and
    validation data of the configuration. If there is none, both are empty.
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


def verify_export(
    to: Target,
    loaded: LoadedModel,
    folder: Path,
    lines: list[str],
    beam_size: int | None = None,
    compute_type: str = "float32",
) -> Parity:
    """Translate `lines` with the original model and its export, and compare the translations.

    `beam_size` overrides the model's beam size. `compute_type` is for CTranslate2.
    """
    search = {"nbest": 1} if beam_size is None else {"nbest": 1, "beam_size": beam_size}
    decode = loaded.config.decode.model_copy(update=search)
    compute = set_up_compute("cpu", "fp32", None)
    threads = torch.get_num_threads()
    translator = Translator(loaded.model, loaded.tokenizer, decode, compute)
    engine: Engine
    if to == "ctranslate2":
        engine = CTranslate2Engine(folder, loaded.tokenizer, decode, threads, 1, compute_type)
    elif to == "onnx":
        onnx = OnnxModel(folder, threads)
        engine = MTEngine(
            Translator(loaded.model, loaded.tokenizer, decode, compute, step_model=onnx)
        )
    else:
        engine = TransformersEngine(folder, decode)
    if to == "marian":
        check_tokenizer(folder, loaded.tokenizer, lines)
    return compare(translator, engine, lines)


def _worst(parity: Parity) -> list[str]:
    worst = sorted(parity.differences, key=lambda difference: -difference.gap)[:5]
    return [
        f"  line {d.line}, scores {d.gap:.1e} apart\n    mt:    {d.hyp}\n    other: {d.other_hyp}"
        for d in worst
    ]
