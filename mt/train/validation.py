"""Validation during training: the loss on all validation text, and BLEU and chrF on a sample."""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from mt.artifacts import RunFolder
from mt.config import Config
from mt.data.batch import IdPair, collate, to_device
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
from mt.runtime.device import PRECISION_NAMES, Compute
from mt.runtime.memory import halve_if_out_of_memory
from mt.runtime.world import ALONE, World
from mt.train.objective import loss_sums

logger = logging.getLogger(__name__)
# Applies a function to a list of items, like `World.map_sharded`.
Map = Callable[[Callable[[Sequence[Any]], Sequence[Any]], Sequence[Any]], list[Any]]
Corpus = tuple[str, list[str], list[str]]  # label, source lines, reference lines

# Pairs with more subwords on a side are left out of the loss, unless training allows more. Memory
# grows with the square of the length.
MAX_LEN = 1024


class Validator:
    """Scores models on the validation text of a run.

    `fingerprint` identifies the text, the search and the metrics. Scores with different
    fingerprints are not comparable.
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
        for corpus in config.data.valid:
            check_corpus(corpus)
        corpora = [
            (corpus.label, *read_parallel([corpus], config.data)) for corpus in config.data.valid
        ]
        max_len = min(max(MAX_LEN, config.data.filters.max_len), int(config.batching.max_tokens))
        pairs = [
            pair for corpus in corpora for pair in _pairs_for_loss(*corpus, tokenizer, max_len)
        ]
        if not pairs:
            raise DataError(
                "data.valid: no line has words on both sides "
                f"and at most {max_len} subwords on each side"
            )
        self.loader = ValidLoader(pairs, config.batching.max_tokens)
        self.src, self.ref, self.parts = _sample(corpora, config.valid.max_sentences)
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

    def validate(self, model: Transformer, step: int, map_sharded: Map) -> dict[str, float]:
        """Score the model, and return its scores, keyed by name. The loss is in nats per token.

        All ranks must call this. Rank 0 writes translations and scores to valid/step_N in the run
        folder.
        """
        loss = self.loss(model, map_sharded)
        translator = Translator(
            model, self.tokenizer, self.decode, self.compute, tgt_lang=self.config.data.tgt_lang
        )
        result = evaluate(
            lambda lines: map_sharded(translator.translate, lines),
            self.src,
            [self.ref],
            self.metrics,
        )
        scores = {"loss": loss, **{name: score.value for name, score in result.scores.items()}}
        details = {
            **scores,
            "precision": PRECISION_NAMES[self.compute.dtype],
            "sentences": len(self.src),
            "signatures": {name: score.signature for name, score in result.scores.items()},
            "measured": self.fingerprint,
        }
        if self.world.is_rank0:
            self._report(step, result.hyps, details)
        return scores

    def _report(self, step: int, hyps: Sequence[str], details: dict[str, Any]) -> None:
        """Write a validation to the run folder, and log scores per corpus and some translations."""
        if len(self.parts) > 1:
            details["corpora"] = {
                name: self._scores(hyps, part) for name, part in self.parts.items()
            }
            for name, scores in details["corpora"].items():
                values = ", ".join(f"{TITLES[key]} {value:.2f}" for key, value in scores.items())
                logger.info(f"  {name}: {values}")
        try:
            self.run.write_validation(step, hyps, details)
        except OSError as error:
            logger.warning(
                f"the validation of update {step} could not be written, so this update cannot be "
                f"the best: {error}"
            )
        triples = zip(self.src, self.ref, hyps, strict=True)
        for src, ref, hyp in itertools.islice(triples, self.config.valid.samples):
            logger.info(f"  src: {src}\n  ref: {ref}\n  hyp: {hyp}")

    def _scores(self, hyps: Sequence[str], part: slice) -> dict[str, float]:
        if not any(line.strip() for line in self.ref[part]):
            return {}
        scores = corpus_scores(hyps[part], [self.ref[part]], self.metrics)
        return {name: score.value for name, score in scores.items()}

    @torch.no_grad()
    def loss(self, model: Transformer, map_sharded: Map) -> float:
        """Return the negative log-likelihood in nats per target token.

        It is computed without dropout and label smoothing. Batches that do not fit into memory are
        split in half.
        """
        model.eval()
        groups = list(self.loader)
        nlls = map_sharded(
            lambda part: [
                sum(halve_if_out_of_memory(lambda pairs: [self._nll(model, pairs)], group))
                for group in part
            ],
            groups,
        )
        return sum(nlls) / sum(len(tgt) + 1 for group in groups for _, tgt in group)

    def _nll(self, model: Transformer, pairs: Sequence[IdPair]) -> float:
        with self.compute.autocast():
            return float(loss_sums(model, to_device(collate(pairs), self.compute.device), 0.0).nll)


def _sample(
    corpora: Sequence[Corpus], max_sentences: int
) -> tuple[list[str], list[str], dict[str, slice]]:
    """Take evenly spaced lines of each corpus, in total about `max_sentences`.

    Returns (source lines, reference lines, where the lines of each corpus are).
    """
    src: list[str] = []
    ref: list[str] = []
    parts: dict[str, slice] = {}
    counts = sample_sizes([len(corpus_src) for _, corpus_src, _ in corpora], max_sentences)
    for (label, corpus_src, corpus_ref), count in zip(corpora, counts, strict=True):
        name = label if label not in parts else f"{label} ({len(parts) + 1})"
        parts[name] = slice(len(src), len(src) + count)
        chosen = [i * len(corpus_src) // count for i in range(count)]
        src += [corpus_src[i] for i in chosen]
        ref += [corpus_ref[i] for i in chosen]
    return src, ref, parts


def sample_sizes(sizes: Sequence[int], max_lines: int) -> list[int]:
    """Return how many lines to take from each of several corpora with these `sizes`.

    Each corpus gets its share of `max_lines`, but at least one line, so the sum may be larger. If
    all corpora together have at most `max_lines`, all lines are taken.
    """
    total = sum(sizes)
    return (
        list(sizes) if total <= max_lines else [max(1, size * max_lines // total) for size in sizes]
    )


def _pairs_for_loss(
    label: str, src: Sequence[str], ref: Sequence[str], tokenizer: Tokenizer, max_len: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the id pairs of a corpus, except pairs with an empty side or more than `max_len` ids.

    Each pair that is too long causes a warning.
    """
    for number, pair in enumerate(
        zip(tokenizer.encode_src(src), tokenizer.encode_tgt(ref), strict=True), 1
    ):
        length = max(map(len, pair)) + 1
        if length > max_len:
            logger.warning(
                f"{label}:{number}: {length:,} subwords, more than {max_len}; "
                "left out of the validation loss"
            )
        elif all(pair):
            yield pair
