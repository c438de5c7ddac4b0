"""Export to Hugging Face: post-norm models as Marian, pre-norm models as Pegasus; and
`transformers` (extra `hf`) to prove it with.

Both have Marian's sinusoids and our parameter names, so that an export is nearly a copy. What a
format cannot express is refused, all reasons at once. Writing needs nothing of `transformers`.
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
from mt.convert.extras import import_extra
from mt.convert.proof import by_source_length
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer
from mt.decode.loading import LoadedModel
from mt.decode.search import max_output_len
from mt.errors import ExportError, listed
from mt.files import atomic_dir
from mt.model.layers import sinusoids

Format = Literal["marian", "pegasus"]
CLASSES = {"marian": "MarianMTModel", "pegasus": "PegasusForConditionalGeneration"}


def export_huggingface(loaded: LoadedModel, out: Path, format: Format) -> None:
    """Write a model as the folder that `AutoModelForSeq2SeqLM.from_pretrained` opens, in fp32.

    A Marian folder has its tokenizer (`AutoTokenizer`); Pegasus has none that knows our ids, and is
    for token ids. Raises `ExportError` for a model that the format cannot express, and where `out`
    exists.
    """
    if out.exists():
        raise ExportError(f"{out}: exists already; choose another folder")
    if reasons := refusals(loaded, format):
        raise ExportError(listed(f"{loaded.folder}: cannot be a {format} model", reasons))
    with atomic_dir(out) as temporary:
        save_file(
            _weights(loaded, format), temporary / "model.safetensors", metadata={"format": "pt"}
        )
        _write_json(temporary / "config.json", _config(loaded, format))
        _write_json(temporary / "generation_config.json", _generation_config(loaded))
        if format == "marian":
            _write_tokenizer(temporary, loaded)
        else:
            shutil.copytree(loaded.folder.tokenizer, temporary / "tokenizer")
        (temporary / "README.md").write_text(_card(loaded, format), encoding="utf-8")


def refusals(loaded: LoadedModel, format: Format) -> list[str]:
    """Why a model cannot be written in a format, each with what would help."""
    model = loaded.config.model
    reasons = []
    if format == "marian" and model.norm != "post":
        reasons.append("model.norm: pre; Marian is post-norm (try --to pegasus)")
    if format == "pegasus" and model.norm != "pre":
        reasons.append("model.norm: post; Pegasus is pre-norm (try --to marian)")
    if format == "pegasus" and model.tie_embeddings != "all":
        reasons.append(
            f"model.tie_embeddings: {model.tie_embeddings}; Pegasus has one matrix for both embeddings and the output (`all`)"
        )
    return reasons


def _weights(loaded: LoadedModel, format: Format) -> dict[str, Tensor]:
    """Ours by their names there; tied ones once. Pegasus misses positions that are not in the file,
    and says so.
    """
    weights = {
        name: weight.detach().float().contiguous()
        for name, weight in loaded.model.named_parameters()
    }
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
        positions = sinusoids(_longest(loaded.config.decode), loaded.config.model.d_model)
        renamed |= {
            f"model.{side}.embed_positions.weight": positions.clone()
            for side in ("encoder", "decoder")
        }
    bias = weights.get("output_bias", torch.zeros(loaded.tokenizer.tgt_vocab_size))
    return {**renamed, "final_logits_bias": bias[None].contiguous()}


def _config(loaded: LoadedModel, format: Format) -> dict[str, Any]:
    model, tokenizer = loaded.config.model, loaded.tokenizer
    tied = model.tie_embeddings
    sides = {
        f"{side}_{name}": value
        for side, layers in (("encoder", model.encoder_layers), ("decoder", model.decoder_layers))
        for name, value in {
            "layers": layers,
            "ffn_dim": model.d_ff,
            "attention_heads": model.num_heads,
            "layerdrop": 0.0,
        }.items()
    }
    own = (
        {
            "decoder_vocab_size": tokenizer.tgt_vocab_size,
            "share_encoder_decoder_embeddings": tied == "all",
        }
        if format == "marian"
        else {}
    )
    return {
        "architectures": [CLASSES[format]], "model_type": format, "dtype": "float32",
        "vocab_size": tokenizer.src_vocab_size, "d_model": model.d_model, **sides,
        "activation_function": model.activation, "dropout": model.dropout, "attention_dropout": model.attention_dropout,
        "activation_dropout": model.activation_dropout, "scale_embedding": True, "max_position_embeddings": _longest(loaded.config.decode),
        "tie_word_embeddings": tied != "none", "is_encoder_decoder": True, "num_hidden_layers": model.encoder_layers,
        **_special_ids(), **own,
    }  # fmt: skip


def _special_ids() -> dict[str, int | None]:
    ids = {
        "pad_token_id": PAD_ID,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": BOS_ID,
    }
    return {**ids, "forced_eos_token_id": None}


def _longest(decode: DecodeConfig) -> int:
    """Positions that source or target may take."""
    return max(
        1024,
        decode.longest_src + 1,
        max_output_len(decode.longest_src + 1, decode.max_len_a, decode.max_len_b) + 1,
    )


def _generation_config(loaded: LoadedModel) -> dict[str, Any]:
    """Our search: a sentence is done with as many finished hypotheses as it has beams, and nothing
    is forced at its limit.
    """
    decode = loaded.config.decode
    search = {
        "num_beams": decode.beam_size,
        "length_penalty": decode.length_penalty,
        "early_stopping": decode.beam_size > 1,
    }
    return {**search, "max_length": _longest(decode), **_special_ids()}


def _write_tokenizer(folder: Path, loaded: LoadedModel) -> None:
    tokenizer, data = loaded.tokenizer, loaded.config.data
    is_joint = tokenizer.is_joint
    names = tokenizer.tgt_pieces
    shutil.copyfile(tokenizer.src_model, folder / "source.spm")
    shutil.copyfile(tokenizer.tgt_model, folder / "target.spm")
    _write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(tokenizer.src_pieces)})
    if not is_joint:
        _write_json(
            folder / "target_vocab.json", {piece: i for i, piece in enumerate(tokenizer.tgt_pieces)}
        )
    _write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "MarianTokenizer", "source_lang": data.src_lang, "target_lang": data.tgt_lang, "separate_vocabs": not is_joint,
        "unk_token": names[UNK_ID], "pad_token": names[PAD_ID], "eos_token": names[EOS_ID],
        "model_max_length": max(DEFAULT_MAX_SRC_LEN, loaded.config.decode.longest_src) + 1,
    })  # fmt: skip


def _card(loaded: LoadedModel, format: Format) -> str:
    """A model card, with what is known of languages, text and scores; the licence is the author's
    to say.
    """
    data, about = loaded.config.data, loaded.provenance
    languages = [lang for lang in (data.src_lang, data.tgt_lang) if lang]
    scores = ", ".join(
        f"{name} {value:.2f}"
        for name, value in (about.get("scores") or {}).items()
        if isinstance(value, int | float)
    )
    use = (
        "`AutoModelForSeq2SeqLM` and `AutoTokenizer`"
        if format == "marian"
        else "`AutoModelForSeq2SeqLM`, on the ids of tokenizer/"
    )
    return "\n".join([
        "---", "license: unknown  # to be filled in", "library_name: transformers", "pipeline_tag: translation",
        *(["language:", *(f"- {lang}" for lang in languages)] if languages else []), "---", "",
        f"# {' to '.join(languages) or 'Translation'}", "",
        f"A Transformer trained and exported by mt {about.get('mt', '')}; open it with {use}.", "",
        *([f"Validation: {scores}."] if scores else []), "",
    ])  # fmt: skip


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class TransformersEngine:
    """A folder of theirs at work, on our ids; see `mt.convert.proof.Engine`.

    `ids` has their id of each of our target ids if they differ, `src_ids` that of each source id if
    it is another.
    """

    def __init__(
        self,
        folder: Path,
        decode: DecodeConfig,
        ids: Sequence[int] | None = None,
        src_ids: Sequence[int] | None = None,
    ) -> None:
        import_extra("transformers.utils.logging", "hf").disable_progress_bar()
        opener = import_extra("transformers", "hf").AutoModelForSeq2SeqLM
        self.model = opener.from_pretrained(str(folder), dtype=torch.float32).eval()
        self.decode = decode
        sizes = (self.model.config.vocab_size, getattr(self.model.config, "decoder_vocab_size", 0))
        self.ids = list(range(max(sizes))) if ids is None else list(ids)
        self.src_ids = self.ids if src_ids is None else list(src_ids)
        self.own = {
            theirs: i for i, theirs in reversed(list(enumerate(self.ids)))
        }  # of two that share one, the first

    def translate(self, sources: Sequence[list[int]]) -> list[tuple[list[int], float]]:
        """The best hypothesis of each source and its score."""
        return by_source_length(sources, self.decode, self._translate)

    @torch.inference_mode()
    def _translate(
        self, sources: Sequence[list[int]], max_len: int
    ) -> list[tuple[list[int], float]]:
        """Sources of one length."""
        found: list[tuple[list[int], float]] = []
        for start in range(0, len(sources), self.decode.batch_size):
            batch = sources[start : start + self.decode.batch_size]
            inputs = torch.tensor([self._theirs_of_src([*source, EOS_ID]) for source in batch])
            output = self.model.generate(
                inputs, max_length=max_len + 1, num_beams=self.decode.beam_size, do_sample=False,
                length_penalty=self.decode.length_penalty, early_stopping=self.decode.beam_size > 1,
            )  # fmt: skip
            for source, (_, *found_ids) in zip(batch, output.tolist(), strict=True):
                tokens = [self.own[i] for i in found_ids]
                ended = tokens[: tokens.index(EOS_ID) + 1] if EOS_ID in tokens else tokens
                score = self._log_prob(source, ended) / len(ended) ** self.decode.length_penalty
                found.append((ended[:-1] if ended[-1] == EOS_ID else ended, score))
        return found

    @torch.inference_mode()
    def _log_prob(self, source: list[int], tokens: list[int]) -> float:
        src = torch.tensor([self._theirs_of_src([*source, EOS_ID])])
        tgt_in = torch.tensor([self._theirs([BOS_ID, *tokens[:-1]])])
        logits = self.model(input_ids=src, decoder_input_ids=tgt_in).logits[0]
        return float(
            logits.log_softmax(dim=-1).gather(1, torch.tensor(self._theirs(tokens))[:, None]).sum()
        )

    def _theirs_of_src(self, ids: Sequence[int]) -> list[int]:
        return [self.src_ids[i] for i in ids]

    def _theirs(self, ids: Sequence[int]) -> list[int]:
        return [self.ids[i] for i in ids]

    def score(self, source: list[int], target: list[int]) -> float:
        """Log-probability of a target and its end of sentence, over length**length_penalty."""
        return (
            self._log_prob(source, [*target, EOS_ID])
            / (len(target) + 1) ** self.decode.length_penalty
        )


def check_tokenizer(folder: Path, tokenizer: Tokenizer, lines: Sequence[str]) -> None:
    """Raise `ExportError` where the exported tokenizer gives other ids than ours to one of `lines`."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))(list(lines))["input_ids"]
    for number, (ids, own) in enumerate(zip(theirs, tokenizer.encode_src(lines), strict=True), 1):
        if ids != [*own, EOS_ID]:
            raise ExportError(
                f"{folder} was not written: its tokenizer reads line {number} otherwise: {ids} instead of {[*own, EOS_ID]}"
            )
