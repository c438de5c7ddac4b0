"""Validation in training: the loss over all validation text, and BLEU and chrF of an even sample
through `mt.evaluation.scoring`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mt.artifacts import RunFolder
from mt.config import Config
from mt.data.batch import IdPair, collate, moved
from mt.data.order import ValidLoader
from mt.data.prepare import check_corpus
from mt.data.sources import read_parallel
from mt.data.tokenizer import Tokenizer
from mt.decode.translator import Translator
from mt.errors import DataError
from mt.evaluation import TITLES, build_metrics, corpus_scores
from mt.evaluation.evaluate import evaluate
from mt.files import fingerprint
from mt.model.transformer import Transformer
from mt.runtime.device import NAMES, Compute
from mt.runtime.memory import in_halves
from mt.runtime.world import ALONE, World
from mt.train.objective import loss_sums

logger = logging.getLogger(__name__)
Share = Callable[[Callable[[Sequence[Any]], Sequence[Any]], Sequence[Any]], list[Any]]


# subwords of a side in the loss, unless training has longer ones: memory grows with the square
LONGEST = 1024


class Validator:
    """The validation text of a run and what is done with it.

    `measured` names what the scores measure: text, search and metrics. Scores with another name are
    not comparable.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: Tokenizer,
        compute: Compute,
        run: RunFolder,
        world: World = ALONE,
    ) -> None:
        self.config, self.tokenizer, self.compute = config, tokenizer, compute
        self.run, self.world = run, world
        self.src: list[str] = []
        self.ref: list[str] = []
        self.parts: dict[str, slice] = {}  # of these lines, by corpus
        for corpus in config.data.valid:
            check_corpus(corpus)
        corpora = [
            (corpus.label, *read_parallel([corpus], config.data)) for corpus in config.data.valid
        ]
        longest = min(max(LONGEST, config.data.filters.max_len), int(config.batching.max_tokens))
        pairs = [
            pair for corpus in corpora for pair in _pairs_for_loss(*corpus, tokenizer, longest)
        ]
        if not pairs:
            raise DataError(
                f"data.valid: no line with words on both sides and at most {longest} subwords on each"
            )
        self.loader = ValidLoader(pairs, config.batching.max_tokens)
        counts = sample_sizes([len(src) for _, src, _ in corpora], config.valid.max_sentences)
        for (label, src, ref), count in zip(corpora, counts, strict=True):
            name = label if label not in self.parts else f"{label} ({len(self.parts) + 1})"
            self.parts[name] = slice(len(self.src), len(self.src) + count)
            chosen = [i * len(src) // count for i in range(count)]
            self.src += [src[i] for i in chosen]
            self.ref += [ref[i] for i in chosen]
        self.metrics = build_metrics(("bleu", "chrf"), config.data.tgt_lang)
        self.decode = config.decode.model_copy(
            update={"beam_size": config.valid.beam_size, "nbest": 1}
        )
        signatures = [
            getattr(metric, "tokenizer_signature", name) for name, metric in self.metrics.items()
        ]
        search = self.decode.model_dump(exclude={"batch_size", "max_tokens"})
        self.fingerprint = fingerprint(
            [corpus[1:] for corpus in corpora], self.src, search, signatures
        )

    def validate(
        self, model: Transformer, step: int, shared: Share | None = None
    ) -> dict[str, float]:
        """Scores by name (loss in nats a token); translations and signatures go to valid/step_N in
        the run folder.

        `shared` does a work on items as `World.shared` does, which is what is called where it is
        not given.
        """
        shared = shared or self.world.map_sharded
        loss = self.loss(model, shared)
        translator = Translator(
            model, self.tokenizer, self.decode, self.compute, tgt_lang=self.config.data.tgt_lang
        )
        result = evaluate(
            lambda lines: shared(translator.translate, lines), self.src, [self.ref], self.metrics
        )
        scores = {"loss": loss, **{name: score.value for name, score in result.scores.items()}}
        details = {
            **scores, "precision": NAMES[self.compute.dtype], "sentences": len(self.src),
            "signatures": {name: score.signature for name, score in result.scores.items()},
            "measured": self.fingerprint,
        }  # fmt: skip
        if not self.world.is_rank0:
            return scores
        if len(self.parts) > 1:
            by_corpus = {
                name: self._scores_of(result.hyps, part) for name, part in self.parts.items()
            }
            details["corpora"] = by_corpus
            for name, found in by_corpus.items():
                logger.info(
                    "  %s: %s",
                    name,
                    ", ".join(f"{TITLES[metric]} {value:.2f}" for metric, value in found.items()),
                )
        try:
            self.run.write_validation(step, result.hyps, details)
        except OSError as error:
            logger.warning(
                "the validation of update %d could not be written, and cannot make it the best: %s",
                step,
                error,
            )
        for src, ref, hyp in list(zip(self.src, self.ref, result.hyps, strict=True))[
            : self.config.valid.samples
        ]:
            logger.info("  src: %s\n  ref: %s\n  hyp: %s", src, ref, hyp)
        return scores

    def _scores_of(self, hyps: Sequence[str], part: slice) -> dict[str, float]:
        if not any(line.strip() for line in self.ref[part]):
            return {}
        return {
            name: score.value
            for name, score in corpus_scores(hyps[part], [self.ref[part]], self.metrics).items()
        }

    @torch.no_grad()
    def loss(self, model: Transformer, shared: Share | None = None) -> float:
        """Negative log-likelihood in nats a target token, without dropout and label smoothing."""
        model.eval()
        groups = list(self.loader)
        shared = shared or self.world.map_sharded
        nlls = shared(
            lambda part: [
                sum(in_halves(lambda pairs: [self._nll(model, pairs)], group)) for group in part
            ],
            groups,
        )
        return sum(nlls) / sum(len(tgt) + 1 for group in groups for _, tgt in group)

    def _nll(self, model: Transformer, pairs: Sequence[IdPair]) -> float:
        with self.compute.autocast():
            return float(loss_sums(model, moved(collate(pairs), self.compute.device), 0.0).nll)


def sample_sizes(sizes: Sequence[int], max_lines: int) -> list[int]:
    """How many lines to take of each of several corpora: all, or so many that they are `max_lines`
    together, each in its share.

    Each corpus has one line at least, even if that makes them more.
    """
    total = sum(sizes)
    return (
        list(sizes) if total <= max_lines else [max(1, size * max_lines // total) for size in sizes]
    )


def _pairs_for_loss(
    label: str, src: Sequence[str], ref: Sequence[str], tokenizer: Tokenizer, longest: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Pairs of ids, without those that are empty on a side, and, with a warning, those longer than
    `longest`.
    """
    for number, pair in enumerate(
        zip(tokenizer.encode_src(src), tokenizer.encode_tgt(ref), strict=True), 1
    ):
        length = max(map(len, pair)) + 1
        if length > longest:
            logger.warning(
                "%s:%d: %s subwords, more than %d; left out of the validation loss",
                label,
                number,
                f"{length:,}",
                longest,
            )
        elif all(pair):
            yield pair
