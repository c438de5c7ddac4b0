"""Validation in training: the loss over all validation text, and BLEU and chrF of a bounded part through `mt.evaluate`."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mt.config import Config
from mt.data.batching import IdPair, collate, moved
from mt.data.corpus import read_parallel
from mt.data.loader import ValidLoader
from mt.data.tokenizer import Tokenizer
from mt.decode.translator import Translator
from mt.device import NAMES, Compute, in_halves
from mt.distributed import ALONE, World
from mt.evaluate import evaluate
from mt.files import atomic_write
from mt.metrics import build_metrics
from mt.model.transformer import Transformer
from mt.train.loss import loss_sums

logger = logging.getLogger(__name__)
Share = Callable[[Callable[[Sequence[Any]], Sequence[Any]], Sequence[Any]], list[Any]]


class Validator:
    """The validation text of a run and what is done with it."""

    def __init__(self, config: Config, tokenizer: Tokenizer, compute: Compute, run_dir: Path, world: World = ALONE) -> None:
        self.config, self.tokenizer, self.compute, self.run_dir, self.world = config, tokenizer, compute, run_dir, world
        src, ref = read_parallel(config.data.valid, config.data)
        pairs = [(s, t) for s, t in zip(tokenizer.encode_src(src), tokenizer.encode_tgt(ref), strict=True) if s and t]
        self.loader = ValidLoader(pairs, config.batching.max_tokens)
        self.src, self.ref = src[: config.valid.max_sentences], ref[: config.valid.max_sentences]
        self.metrics = build_metrics(("bleu", "chrf"), config.data.tgt_lang)
        self.decode = config.decode.model_copy(update={"beam_size": config.valid.beam_size, "nbest": 1})

    def validate(self, model: Transformer, step: int, shared: Share | None = None) -> dict[str, float]:
        """Scores by name (loss in nats a token); translations and signatures go to valid/step_N in the run folder.

        `shared` does a work on items as `World.shared` does, which is what is called where it is not given.
        """
        shared = shared or self.world.shared
        loss = self.loss(model, shared)
        translator = Translator(model, self.tokenizer, self.decode, self.compute)
        result = evaluate(lambda lines: shared(translator.translate, lines), self.src, [self.ref], self.metrics)
        scores = {"loss": loss, **{name: score.value for name, score in result.scores.items()}}
        details = {
            **scores, "precision": NAMES[self.compute.dtype], "sentences": len(self.src),
            "signatures": {name: score.signature for name, score in result.scores.items()},
        }  # fmt: skip
        if not self.world.is_first:
            return scores
        try:
            self._write(self.run_dir / "valid" / f"step_{step:08d}", result.hyps, details)
        except OSError as error:
            logger.warning("the validation of update %d could not be written, and cannot make it the best: %s", step, error)
        for src, ref, hyp in list(zip(self.src, self.ref, result.hyps, strict=True))[: self.config.valid.samples]:
            logger.info("  src: %s\n  ref: %s\n  hyp: %s", src, ref, hyp)
        return scores

    def _write(self, folder: Path, hyps: Sequence[str], details: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(folder / "hyp.txt", "".join(f"{hyp}\n" for hyp in hyps))
        atomic_write(folder / "scores.json", json.dumps(details, indent=2) + "\n")

    @torch.no_grad()
    def loss(self, model: Transformer, shared: Share | None = None) -> float:
        """Negative log-likelihood in nats a target token, without dropout and label smoothing."""
        model.eval()
        groups = list(self.loader)
        shared = shared or self.world.shared
        nlls = shared(lambda part: [sum(in_halves(lambda pairs: [self._nll(model, pairs)], group)) for group in part], groups)
        return sum(nlls) / sum(len(tgt) + 1 for group in groups for _, tgt in group)

    def _nll(self, model: Transformer, pairs: Sequence[IdPair]) -> float:
        with self.compute.autocast():
            return float(loss_sums(model, moved(collate(pairs), self.compute.device), 0.0).nll)
