"""Export to Hugging Face: post-norm models as Marian, pre-norm models as Pegasus.

Both have the same sinusoids and nearly the same parameter names as `mt`, so not much must change.
Only verifying an export needs `transformers` (extra `hf`).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from mt.config import DEFAULT_MAX_SRC_LEN, DecodeConfig
from mt.convert.extras import check_is_new, import_extra
from mt.convert.parity import Translated, by_source_length, output_limit
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from mt.decode.loading import LoadedModel
from mt.errors import ExportError, join_reasons
from mt.files import atomic_dir
from mt.model.layers import sinusoids

Format = Literal["marian", "pegasus"]
CLASSES = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}
SPECIAL_IDS = {
    "pad_token_id": PAD_ID,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "decoder_start_token_id": BOS_ID,
    "forced_eos_token_id": None,
}


def export_huggingface(loaded: LoadedModel, out: Path, format: Format) -> None:
    """Write a folder for `AutoModelForSeq2SeqLM.from_pretrained`, with fp32 weights.

    The tokenizer of a Marian folder can be opened by `AutoTokenizer`. A Pegasus tokenizer cannot
    express our ids, so a Pegasus folder contains our SentencePiece models instead. Raises
    `ExportError` if the format cannot express the model, or if `out` exists.
    """
    check_is_new(out)
    if reasons := refusals(loaded, format):
        raise ExportError(join_reasons(f"{loaded.folder}: cannot be exported as {format}", reasons))
    with atomic_dir(out) as temporary:
        weights = _weights(loaded, format)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", _config(loaded, format))
        _write_json(temporary / "generation_config.json", _generation_config(loaded))
        if format == "marian":
            _write_tokenizer(temporary, loaded)
        else:
            shutil.copytree(loaded.folder.tokenizer, temporary / "tokenizer")
        (temporary / "README.md").write_text(_card(loaded, format), encoding="utf-8")


def refusals(loaded: LoadedModel, format: Format) -> list[str]:
    """Return the reasons why the format cannot express the model, and what would help."""
    model = loaded.config.model
    reasons = []
    if format == "marian" and model.norm != "post":
        reasons.append("model.norm: pre, but Marian models are post-norm; try --to pegasus")
    if format == "pegasus" and model.norm != "pre":
        reasons.append("model.norm: post, but Pegasus models are pre-norm; try --to marian")
    if format == "pegasus" and model.tie_embeddings != "all":
        reasons.append(
            f"model.tie_embeddings: {model.tie_embeddings}, but Pegasus models share one matrix "
            "(tie_embeddings: all)"
        )
    return reasons


def _weights(loaded: LoadedModel, format: Format) -> dict[str, Tensor]:
    """Return the weights, keyed by the names that `transformers` expects.

    Shared matrices are included once. For Pegasus, the sinusoids are included, too, because
    `transformers` warns if they are missing.
    """
    parameters = loaded.model.named_parameters()
    weights = {name: weight.detach().float().contiguous() for name, weight in parameters}
    renamed = {
        f"model.{name}": weight
        for name, weight in weights.items()
        if not name.startswith("output_")
    }
    if loaded.config.model.tie_embeddings == "all":
        renamed["model.shared.weight"] = renamed.pop("model.encoder.embed_tokens.weight")
    if loaded.config.model.tie_embeddings == "none":
        renamed["lm_head.weight"] = weights["output_projection.weight"]
    if format == "pegasus":
        positions = sinusoids(_num_positions(loaded.config.decode), loaded.config.model.d_model)
        for side in ("encoder", "decoder"):
            renamed[f"model.{side}.embed_positions.weight"] = positions.clone()
    bias = weights.get("output_bias", torch.zeros(loaded.tokenizer.tgt_vocab_size))
    return {**renamed, "final_logits_bias": bias[None].contiguous()}


def _config(loaded: LoadedModel, format: Format) -> dict[str, Any]:
    model, tokenizer = loaded.config.model, loaded.tokenizer
    tied = model.tie_embeddings
    sides: dict[str, Any] = {}
    for side, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers)):
        sides |= {
            f"{side}_layers": layers,
            f"{side}_ffn_dim": model.d_ff,
            f"{side}_attention_heads": model.num_heads,
            f"{side}_layerdrop": 0.0,
        }
    config = {
        "architectures": [CLASSES[format]],
        "model_type": format,
        "dtype": "float32",
        "vocab_size": tokenizer.src_vocab_size,
        "d_model": model.d_model,
        **sides,
        "activation_function": model.activation,
        "dropout": model.dropout,
        "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout,
        "scale_embedding": True,
        "max_position_embeddings": _num_positions(loaded.config.decode),
        "tie_word_embeddings": tied != "none",
        "is_encoder_decoder": True,
        "num_hidden_layers": model.encoder_layers,
        **SPECIAL_IDS,
    }
    if format == "marian":
        config["decoder_vocab_size"] = tokenizer.tgt_vocab_size
        config["share_encoder_decoder_embeddings"] = tied == "all"
    return config


def _num_positions(decode: DecodeConfig) -> int:
    """Return the number of positions, including the extra token at the start of a target."""
    longest = decode.longest_src
    return max(1024, longest + 1, output_limit(decode, longest) + 1)


def _generation_config(loaded: LoadedModel) -> dict[str, Any]:
    """Return options of `generate` that search like `mt`.

    A sentence is finished when it has `num_beams` finished hypotheses. At the length limit, the
    end-of-sentence token is not forced.
    """
    decode = loaded.config.decode
    return {
        "num_beams": decode.beam_size,
        "length_penalty": decode.length_penalty,
        "early_stopping": decode.beam_size > 1,
        "max_length": _num_positions(decode),
        **SPECIAL_IDS,
    }


def _write_tokenizer(folder: Path, loaded: LoadedModel) -> None:
    tokenizer, data = loaded.tokenizer, loaded.config.data
    pieces = tokenizer.tgt_pieces
    shutil.copyfile(tokenizer.src_model, folder / "source.spm")
    shutil.copyfile(tokenizer.tgt_model, folder / "target.spm")
    _write_vocabulary(folder / "vocab.json", tokenizer.src_pieces)
    if not tokenizer.is_joint:
        _write_vocabulary(folder / "target_vocab.json", pieces)
    config = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": data.src_lang,
        "target_lang": data.tgt_lang,
        "separate_vocabs": not tokenizer.is_joint,
        "unk_token": pieces[UNK_ID],
        "pad_token": pieces[PAD_ID],
        "eos_token": pieces[EOS_ID],
        "model_max_length": max(DEFAULT_MAX_SRC_LEN, loaded.config.decode.longest_src) + 1,
    }
    _write_json(folder / "tokenizer_config.json", config)


def _write_vocabulary(path: Path, pieces: Sequence[str]) -> None:
    _write_json(path, {piece: i for i, piece in enumerate(pieces)})


def _card(loaded: LoadedModel, format: Format) -> str:
    """Return a model card with languages and scores. The author must fill in the license."""
    data, about = loaded.config.data, loaded.provenance
    languages = [lang for lang in (data.src_lang, data.tgt_lang) if lang]
    scores = ", ".join(
        f"{name} {value:.2f}"
        for name, value in (about.get("scores") or {}).items()
        if isinstance(value, int | float)
    )
    tokenizer = "`AutoTokenizer`" if format == "marian" else "the models in tokenizer/"
    lines = [
        "---",
        "license: unknown  # to be filled in",
        "library_name: transformers",
        "pipeline_tag: translation",
        *(["language:", *(f"- {lang}" for lang in languages)] if languages else []),
        "---",
        "",
        f"# {' to '.join(languages) or 'Translation'}",
        "",
        f"A Transformer trained and exported by mt {about.get('mt', '')}; open it with "
        f"`AutoModelForSeq2SeqLM` and {tokenizer}.",
        "",
        *([f"Validation: {scores}."] if scores else []),
        "",
    ]
    return "\n".join(lines)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class TransformersEngine:
    """An `mt.convert.parity.Engine` that runs a folder with `transformers`.

    If the folder uses other ids than `mt`, `tgt_ids` and `src_ids` map our target and source ids to
    the ids of the folder.
    """

    def __init__(
        self,
        folder: Path,
        decode: DecodeConfig,
        tgt_ids: Sequence[int] | None = None,
        src_ids: Sequence[int] | None = None,
    ) -> None:
        import_extra("transformers.utils.logging", "hf").disable_progress_bar()
        opener = import_extra("transformers", "hf").AutoModelForSeq2SeqLM
        self.model = opener.from_pretrained(str(folder), dtype=torch.float32).eval()
        self.decode = decode
        config = self.model.config
        num_ids = max(config.vocab_size, getattr(config, "decoder_vocab_size", 0))
        self.tgt_ids = range(num_ids) if tgt_ids is None else tgt_ids
        self.src_ids = self.tgt_ids if src_ids is None else src_ids
        # The reverse map. If several of our ids map to the same id, the first one is used.
        self.from_tgt_ids = {other: i for i, other in reversed(list(enumerate(self.tgt_ids)))}

    def translate(self, sources: Sequence[list[int]]) -> Translated:
        """Return the best hypothesis for each source, with its score."""
        return by_source_length(sources, self.decode, self._translate)

    @torch.inference_mode()
    def _translate(self, sources: Sequence[list[int]], max_len: int) -> Translated:
        """Translate sources of equal length."""
        results: Translated = []
        for start in range(0, len(sources), self.decode.batch_size):
            batch = sources[start : start + self.decode.batch_size]
            output = self.model.generate(
                torch.cat([self._src(source) for source in batch]),
                max_length=max_len + 1,
                num_beams=self.decode.beam_size,
                do_sample=False,
                length_penalty=self.decode.length_penalty,
                early_stopping=self.decode.beam_size > 1,
            )
            for source, (_, *output_ids) in zip(batch, output.tolist(), strict=True):
                tokens = [self.from_tgt_ids[i] for i in output_ids]
                hyp = tokens[: tokens.index(EOS_ID) + 1] if EOS_ID in tokens else tokens
                score = self._score(source, hyp)
                results.append((hyp[:-1] if hyp[-1] == EOS_ID else hyp, score))
        return results

    @torch.inference_mode()
    def _score(self, source: list[int], tokens: list[int]) -> float:
        """Return the score of target `tokens`, including any end-of-sentence token."""
        tgt_in, tgt_out = self._tgt([BOS_ID, *tokens[:-1]]), self._tgt(tokens)
        logits = self.model(input_ids=self._src(source), decoder_input_ids=tgt_in).logits
        log_probs = logits.log_softmax(dim=-1).gather(2, tgt_out[:, :, None])
        return float(log_probs.sum()) / len(tokens) ** self.decode.length_penalty

    def _src(self, ids: Sequence[int]) -> Tensor:
        """Convert our source ids to the model's input [1, src_len]."""
        return torch.tensor([[self.src_ids[i] for i in (*ids, EOS_ID)]])

    def _tgt(self, ids: Sequence[int]) -> Tensor:
        """Convert our target ids to the model's ids [1, tgt_len]."""
        return torch.tensor([[self.tgt_ids[i] for i in ids]])

    def score(self, source: list[int], target: list[int]) -> float:
        """Return the score of `target`, as defined by `mt.convert.parity.Engine.score`."""
        return self._score(source, [*target, EOS_ID])


def check_tokenizer(folder: Path, tokenizer: Tokenizer, lines: Sequence[str]) -> None:
    """Raise `ExportError` if the exported tokenizer returns other ids than ours for a line."""
    from transformers import AutoTokenizer

    exported = AutoTokenizer.from_pretrained(str(folder))(list(lines))["input_ids"]
    for number, (ids, expected) in enumerate(
        zip(exported, tokenizer.encode_src(lines), strict=True), 1
    ):
        if ids != [*expected, EOS_ID]:
            raise ExportError(
                f"{folder} was not written: its tokenizer splits line {number} differently: {ids} "
                f"instead of {[*expected, EOS_ID]}"
            )
