"""Import and proof: another engine's model as a model folder, and both on the same text."""

import importlib.util
from pathlib import Path

import torch

from mt.convert.huggingface import TransformersEngine
from mt.convert.marian import import_marian
from mt.convert.proof import compare
from mt.data.sources import read_text
from mt.decode.loading import load_model
from mt.decode.translator import Translator
from mt.runtime.device import set_up_compute


def import_and_prove(folder: Path, out: Path, text: str | None, num_lines: int) -> list[str]:
    """Write `out` and return what is to be said about it; of a text, translations of both engines,
    if `transformers` is there.

    A difference is reported, not refused: the folder's own search may have rules that ours lacks.
    """
    lines = read_text(text)[:num_lines] if text is not None else []
    ids = import_marian(folder, out)
    loaded = load_model(out, torch.device("cpu"))
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    head = f"{out}: {folder.name}, {count:,} parameters, {loaded.tokenizer.tgt_vocab_size:,} pieces"
    if not lines:
        return [head, "not proven: give --prove FILE, text in its source language"]
    if importlib.util.find_spec("transformers") is None:
        return [head, "not proven: this needs the package transformers; install mt-forge[hf]"]
    decode = loaded.config.decode
    translator = Translator(
        loaded.model, loaded.tokenizer, decode, set_up_compute("cpu", "fp32", None)
    )
    return [
        head,
        f"{text}, in fp32: {compare(translator, TransformersEngine(folder, decode, ids.tgt, ids.src), lines)}",
    ]
