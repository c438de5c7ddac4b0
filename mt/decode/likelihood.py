"""Log-probabilities of given translations: how likely a model finds each token of a target, given its source."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from mt.data.batch import Batch, collate, moved
from mt.data.tokenizer import Tokenizer
from mt.decode.buckets import map_in_buckets
from mt.decode.loading import load_model
from mt.model.transformer import Transformer
from mt.runtime.device import Compute, in_halves
from mt.runtime.workers import Workers

MAX_TOKENS = 2048  # of a batch, padding counted: their logits over 32,000 words are 256 MiB
WINDOW = 4096  # pairs read ahead and sorted by length together


@dataclass(frozen=True)
class TokenScores:
    """A target and the log-probability (natural) of each of its tokens, end of sentence included."""

    ids: list[int]  # without end of sentence
    log_probs: list[float]

    @property
    def log_prob(self) -> float:
        """Their sum."""
        return sum(self.log_probs)


class Scorer:
    """A model that reads given targets instead of searching for its own (teacher forcing)."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        compute: Compute,
        workers: Workers | None = None,
    ) -> None:
        self.tokenizer, self.workers = tokenizer, workers or Workers()
        self._score_batch = self.workers.share(
            partial(in_halves, partial(token_log_probs, model.eval(), compute))
        )

    @classmethod
    def load(cls, path: str | Path, compute: Compute, workers: Workers | None = None) -> "Scorer":
        """Open a model folder, or a run folder (its best checkpoint). Raises `CheckpointError`."""
        loaded = load_model(Path(path), compute.device)
        return cls(loaded.model, loaded.tokenizer, compute, workers)

    def score(self, pairs: Iterable[tuple[str, str]]) -> Iterator[TokenScores]:
        """Scores of (source, target) lines, in order; reads `WINDOW` pairs ahead."""
        remaining = iter(pairs)
        while window := list(islice(remaining, WINDOW)):
            src, tgt = zip(*window, strict=True)
            yield from self.score_ids(
                list(
                    zip(self.tokenizer.encode_src(src), self.tokenizer.encode_tgt(tgt), strict=True)
                )
            )

    def source_gain(self, src: Sequence[str], tgt: Sequence[str]) -> list[float]:
        """By how much a token of each target is likelier, in the mean of natural logarithms, with its source than with another line's.

        The other line is the one half the text away; 0 where both are the same. What a model makes up gains little, whatever its attention
        looks like.
        """
        others = [*src[len(src) // 2 :], *src[: len(src) // 2]]
        own, other = (self.score(zip(sources, tgt, strict=True)) for sources in (src, others))
        return [
            (a.log_prob - b.log_prob) / len(a.log_probs)
            for a, b in zip(list(own), list(other), strict=True)
        ]

    def score_ids(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[TokenScores]:
        """The same of ids without end of sentence."""
        found = map_in_buckets(self.workers, self._score_batch, pairs, pairs, MAX_TOKENS)
        return [
            TokenScores(tgt, log_probs) for (_, tgt), log_probs in zip(pairs, found, strict=True)
        ]


@torch.inference_mode()
def token_log_probs(
    model: Transformer, compute: Compute, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[list[float]]:
    """The log-probability of each token of each target, end of sentence included, in one batch."""
    batch = moved(collate(pairs), compute.device)
    assert isinstance(batch, Batch)
    with compute.autocast():
        logits = model.project(model(batch.src, batch.src_mask, batch.tgt_in))
    log_probs = logits.float().log_softmax(dim=-1).gather(2, batch.tgt_out[:, :, None])[:, :, 0]
    return [row[: len(tgt) + 1] for row, (_, tgt) in zip(log_probs.tolist(), pairs, strict=True)]
