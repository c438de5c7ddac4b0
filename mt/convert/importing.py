"""Import another engine's model, and compare the translations of both engines."""

import importlib.util
from pathlib import Path

import torch

from mt.convert.huggingface import TransformersEngine
from mt.convert.marian import import_marian
from mt.convert.parity import compare
from mt.data.sources import read_text
from mt.decode.loading import load_model
from mt.decode.translator import Translator
from mt.runtime.device import set_up_compute


def import_and_verify(folder: Path, out: Path, text: str | None, num_lines: int) -> list[str]:
    """Write the model folder `out`, and return a report, one string per line.

    If `text` is given and `transformers` is installed, the report compares the translations of both
    engines. Differences are not an error, because the original may have search rules that `mt`
    lacks.
    """
    lines = read_text(text)[:num_lines] if text is not None else []
    ids = import_marian(folder, out)
    loaded = load_model(out, torch.device("cpu"))
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    head = f"{out}: {folder.name}, {count:,} parameters, {loaded.tokenizer.tgt_vocab_size:,} pieces"
    if not lines:
        return [head, "not verified: use --prove FILE with text in the source language"]
    if importlib.util.find_spec("transformers") is None:
        return [head, "not verified: this needs the package transformers; install mt-forge[hf]"]
    decode = loaded.config.decode
    translator = Translator(
        loaded.model, loaded.tokenizer, decode, set_up_compute("cpu", "fp32", None)
    )
    engine = TransformersEngine(folder, decode, ids.tgt, ids.src)
    return [head, f"{text}, in fp32: {compare(translator, engine, lines)}"]
