"""One opened model: text in, translations, likelihoods and word alignments out, in input order.

Training, the command line, evaluation, reports and the Python API all come through here.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError

from mt.config import DecodeConfig
from mt.config.languages import parse_language, separator_between
from mt.data.batch import IdPair, pad_rows, token_buckets
from mt.data.tokenizer import EOS_ID, PAD_ID, Tokenizer
from mt.decode.alignment import Alignment, align_batch, numbered_parts
from mt.decode.likelihood import TokenScores, token_log_probs
from mt.decode.loading import load_model
from mt.decode.parts import SourcePart, Splitter, TranslatedPart, Translation
from mt.decode.search import (
    Hypothesis,
    SearchConfig,
    StepModel,
    beam_search,
    greedy_search,
    max_output_lens,
)
from mt.decode.steps import EagerModel
from mt.errors import CheckpointError, ConfigError
from mt.model.transformer import Transformer
from mt.runtime.device import Compute, set_up_compute
from mt.runtime.memory import in_halves
from mt.runtime.sharing import SharedWork
from mt.runtime.workers import Workers

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 8192  # lines read ahead and sorted by length together; bounds the memory of a stream
READ_WINDOW = 4096  # pairs read ahead and sorted by length together
SCORED_TOKENS = 2048  # of a batch, padding counted: their logits over 32,000 words are 256 MiB
ALIGNED_TOKENS = 4096  # of a batch, padding counted
Progress = Callable[[int], object]  # is told how many lines have just been translated


@dataclass(frozen=True)
class Searcher:
    """A model and how to search with it: ids to hypotheses, in one batch."""

    model: StepModel[Any]
    options: DecodeConfig
    device: torch.device

    def __call__(self, sources: Sequence[list[int]]) -> list[list[Hypothesis]]:
        """The `nbest` hypotheses of each of `sources`, ids without end of sentence."""
        options = self.options
        src = pad_rows(sources, suffix=EOS_ID).to(self.device)
        src_mask = src != PAD_ID
        max_lens = max_output_lens(src_mask, options.max_len_a, options.max_len_b)
        if options.beam_size == 1:
            return greedy_search(self.model, src, src_mask, max_lens, options.length_penalty)
        config = SearchConfig(options.beam_size, options.nbest, options.length_penalty)
        return beam_search(self.model, src, src_mask, max_lens, config)


@dataclass(frozen=True)
class Reader:
    """A model that reads given targets; what it does with a batch of them comes with the batch."""

    model: Transformer

    def __call__(
        self, job: tuple[Callable[[Transformer, Sequence[T]], list[R]], Sequence[T]]
    ) -> list[R]:
        """The result of each pair."""
        read, pairs = job
        return in_halves(partial(read, self.model), pairs)


class Translator:
    """A model, its tokenizer, how to search, and the processes that do it, which stay up.

    Several threads may use one at once. `with` ends the processes; else they end with the object.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, compute: Compute,
        workers: Workers | None = None, tgt_lang: str | None = None, *,
        step_model: StepModel[Any] | None = None,
    ) -> None:  # fmt: skip
        """`step_model` searches in place of `model`."""
        self.model, self.tokenizer, self.decode, self.compute = model, tokenizer, decode, compute
        self.workers = workers or Workers()
        self.language = parse_language(tgt_lang)
        self._splitter = Splitter(tokenizer, decode)
        self._step_model = step_model

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        workers: int | None = 1,
        **decode: object,
    ) -> "Translator":
        """Open a model folder, or a run folder (its best checkpoint).

        `precision` is auto, fp32, bf16, fp16 or int8. `workers` processes share the `threads` (all
        cores) of a CPU; None takes one to each thread, the fastest for many lines. `decode`
        overrides the model's own search options (`beam_size`, `length_penalty`, ...: see
        `DecodeConfig`). The weights stay in their file: do not write into it meanwhile.
        Raises `CheckpointError` for a folder that is missing, damaged or something else.
        """
        compute = set_up_compute(device, precision, threads)
        shared = Workers.choose(workers, compute)
        opened = load_model(Path(path), compute.device)
        options = search_options(opened.config.decode, decode)
        language = opened.config.data.tgt_lang
        return cls(opened.model, opened.tokenizer, options, compute, shared, language)

    def __enter__(self) -> "Translator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self.workers.close()

    @cached_property
    def step_model(self) -> StepModel[Any]:
        """What the search runs on, made when it is first needed."""
        return self._step_model or EagerModel(self.model, self.compute.dtype)

    @cached_property
    def _search(self) -> Any:
        search = Searcher(self.step_model, self.decode, self.compute.device)
        shared = self.workers.share(partial(in_halves, search))
        if self.workers.count > 1:  # which have it in a memory of their own
            del self.step_model
        return shared

    def translate(self, lines: Iterable[str], on_progress: Progress | None = None) -> list[str]:
        """The best translation of each line, in order. An empty line stays empty."""
        return [found[0].text for found in self.translate_stream(lines, on_progress)]

    def translate_stream(
        self, lines: Iterable[str], on_progress: Progress | None = None
    ) -> Iterator[list[Translation]]:
        """The `nbest` translations of each line, best first, in order; reads `WINDOW` lines ahead."""
        remaining = iter(lines)
        while window := list(itertools.islice(remaining, WINDOW)):
            yield from self.translate_window(window, on_progress)

    def translate_window(
        self, lines: Sequence[str], on_progress: Progress | None = None
    ) -> list[list[Translation]]:
        """The `nbest` translations of each of these lines, best first; lines of similar length are
        searched together.
        """
        by_line = self._splitter.split(lines)
        parts = [part for parts in by_line for part in parts]
        ends = {id(parts[-1]) for parts in by_line if parts}

        def tell(batch: Sequence[int]) -> None:
            if on_progress is not None:
                on_progress(sum(id(parts[i]) in ends for i in batch))

        hyps = iter(self.search([part.ids for part in parts], tell))
        if on_progress is not None:
            on_progress(sum(not parts for parts in by_line))
        return [self._join([(part, next(hyps)) for part in parts]) for parts in by_line]

    def search(
        self,
        sources: Sequence[list[int]],
        on_batch: Callable[[Sequence[int]], object] = lambda indices: None,
    ) -> list[list[Hypothesis]]:
        """The `nbest` hypotheses of each of `sources`, ids without end of sentence; `on_batch`
        hears which have just been found.

        Raises `CheckpointError` where the model's scores are not finite.
        """
        found: list[list[Hypothesis]] = [[] for _ in sources]
        batches = list(self._batches(sources))
        jobs = [[sources[i] for i in batch] for batch in batches]
        for batch, batch_hyps in zip(batches, self._map(self._search, jobs), strict=True):
            for i, hyps in zip(batch, batch_hyps, strict=True):
                if not hyps:
                    raise CheckpointError(
                        "the model's scores are not finite: its weights are not usable"
                    )
                found[i] = hyps
            on_batch(batch)
        return found

    def likelihood(self, pairs: Iterable[tuple[str, str]]) -> Iterator[TokenScores]:
        """The log-probability of each token of each target given its source, of (source, target)
        lines, in order.
        """
        remaining = iter(pairs)
        while window := list(itertools.islice(remaining, READ_WINDOW)):
            src, tgt = zip(*window, strict=True)
            ids = self.tokenizer.encode_src(src), self.tokenizer.encode_tgt(tgt)
            yield from self.likelihood_of_ids(list(zip(*ids, strict=True)))

    def likelihood_of_ids(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[TokenScores]:
        """The same of ids without end of sentence."""
        read = partial(token_log_probs, compute=self.compute)
        found = self._read(read, pairs, pairs, SCORED_TOKENS)
        return [TokenScores(tgt, values) for (_, tgt), values in zip(pairs, found, strict=True)]

    def align(self, lines: Sequence[str], translations: Sequence[Translation]) -> list[Alignment]:
        """The word alignment of each line with its translation, in fp32; see `mt.decode.alignment`."""
        numbered = numbered_parts(self.tokenizer, lines, translations)
        parts = [part for _, part in numbered]
        ids = [(part.translated.src, part.translated.tgt) for part in parts]
        # A word that was cut in two may come twice.
        found: list[set[tuple[int, int]]] = [set() for _ in lines]
        for (line, _), links in zip(
            numbered, self._read(align_batch, parts, ids, ALIGNED_TOKENS), strict=True
        ):
            found[line].update(links)
        return [sorted(alignment) for alignment in found]

    @cached_property
    def _reader(self) -> Any:
        return self.workers.share(Reader(self.model.eval()))

    def _read(
        self,
        read: Callable[[Transformer, Sequence[T]], list[R]],
        items: Sequence[T],
        ids: Sequence[IdPair],
        max_tokens: int,
    ) -> list[R]:
        """What `read` says of each item, in order; `ids` are their source and target, without end
        of sentence.

        A batch has at most `max_tokens` = rows x longest side.
        """
        src_lens, tgt_lens = (np.array([len(pair[side]) + 1 for pair in ids]) for side in (0, 1))
        buckets = token_buckets(src_lens, tgt_lens, max_tokens)
        jobs = [(read, [items[i] for i in bucket]) for bucket in buckets]
        found: dict[int, R] = {}
        for bucket, results in zip(buckets, self._map(self._reader, jobs), strict=True):
            found.update(zip(bucket.tolist(), results, strict=True))
        return [found[i] for i in range(len(items))]

    def _map(self, work: Callable[[T], R] | SharedWork[T, R], items: Sequence[T]) -> Iterator[R]:
        """`work` of each item, by the workers, or by this process with the threads of `compute`."""
        with contextlib.closing(self.workers.map(work, items)) as results:
            while True:
                with self.compute.limited_threads():
                    result = next(results, _END)
                if result is _END:
                    return
                yield result  # type: ignore[misc]

    def _batches(self, sources: Sequence[list[int]]) -> Iterator[list[int]]:
        """Sources of similar length together, longest first, within `batch_size` sentences and
        `max_tokens` padded tokens.
        """
        batch: list[int] = []
        for i in sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True):
            width = len(sources[batch[0] if batch else i]) + 1
            if batch and (
                len(batch) == self.decode.batch_size
                or width * (len(batch) + 1) > self.decode.max_tokens
            ):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _join(self, parts: list[tuple[SourcePart, list[Hypothesis]]]) -> list[Translation]:
        """Translations of a line from its parts and their hypotheses, rank by rank."""
        if not parts:
            return [Translation("", 0.0, [])]
        joined = []
        for ranked in zip(*(hyps for _, hyps in parts), strict=False):
            whole, translated = "", []
            for (source, _), hyp in zip(parts, ranked, strict=True):
                text = self.tokenizer.decode_tgt(hyp.tokens)
                if whole and text:
                    whole += separator_between(whole, text, self.language)
                translated.append(TranslatedPart(source, hyp.tokens, len(whole)))
                whole += text
            score = sum(hyp.score for hyp in ranked) / len(ranked)
            joined.append(Translation(whole, score, translated))
        return joined


_END = object()  # after the last result


def search_options(own: DecodeConfig, overrides: Mapping[str, object]) -> DecodeConfig:
    """A model's own search options with others over them; None leaves one as it is. Raises
    `ConfigError`.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return DecodeConfig.model_validate({**own.model_dump(), **given})
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
