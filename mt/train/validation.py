"""Validation in training: the loss over all validation text, and BLEU and chrF of a bounded part through `mt.evaluate`."""

import json
import logging
from pathlib import Path

import torch

from mt.config import Config
from mt.data.batching import moved
from mt.data.corpus import read_parallel
from mt.data.loader import ValidLoader
from mt.data.tokenizer import Tokenizer
from mt.decode.translator import Translator
from mt.device import Compute
from mt.evaluate import evaluate
from mt.files import atomic_write
from mt.model.transformer import Transformer
from mt.train.loss import loss_sums

logger = logging.getLogger(__name__)


class Validator:
    """The validation text of a run and what is done with it."""

    def __init__(self, config: Config, tokenizer: Tokenizer, compute: Compute, run_dir: Path) -> None:
        self.config, self.tokenizer, self.compute, self.run_dir = config, tokenizer, compute, run_dir
        src, ref = read_parallel(config.data.valid, config.data)
        pairs = [(s, t) for s, t in zip(tokenizer.encode_src(src), tokenizer.encode_tgt(ref), strict=True) if s and t]
        self.loader = ValidLoader(pairs, config.batching.max_tokens)
        self.src, self.ref = src[: config.valid.max_sentences], ref[: config.valid.max_sentences]
        self.decode = config.decode.model_copy(update={"beam_size": config.valid.beam_size, "nbest": 1})

    def validate(self, model: Transformer, step: int) -> dict[str, float]:
        """Scores by name (loss in nats a token); translations and signatures go to valid/step_N in the run folder."""
        loss = self.loss(model)
        translator = Translator(model, self.tokenizer, self.decode, self.compute)
        result = evaluate(translator, self.src, self.ref, ("bleu", "chrf"))
        scores = {"loss": loss, **{name: score.value for name, score in result.scores.items()}}
        folder = self.run_dir / "valid" / f"step_{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "hyp.txt", "".join(f"{hyp}\n" for hyp in result.hyps))
        details = {**scores, "sentences": len(self.src), "signatures": {name: score.signature for name, score in result.scores.items()}}
        atomic_write(folder / "scores.json", json.dumps(details, indent=2) + "\n")
        for src, ref, hyp in list(zip(self.src, self.ref, result.hyps, strict=True))[: self.config.valid.samples]:
            logger.info("  src: %s\n  ref: %s\n  hyp: %s", src, ref, hyp)
        return scores

    @torch.no_grad()
    def loss(self, model: Transformer) -> float:
        """Negative log-likelihood in nats a target token, without dropout and label smoothing."""
        model.eval()
        total, num_tokens = 0.0, 0
        for batch in self.loader:
            with self.compute.autocast():
                total += float(loss_sums(model, moved(batch, self.compute.device), 0.0).nll)
            num_tokens += batch.num_tokens
        return total / num_tokens
