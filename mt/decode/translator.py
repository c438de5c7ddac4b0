"""A loaded model that translates, scores and aligns text, always in input order.

Validation, the command line, evaluation, reports and the Python API all use `Translator`.
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
from mt.runtime.memory import halve_if_out_of_memory
from mt.runtime.sharing import SharedFunction
from mt.runtime.workers import Workers

T = TypeVar("T")
R = TypeVar("R")

WINDOW = 8192  # number of lines that are read and sorted by length together
READ_WINDOW = 4096  # number of pairs that are read and sorted by length together
# Maximum tokens per batch, including padding. With 32,000 subwords, the logits take 256 MiB.
SCORED_TOKENS, ALIGNED_TOKENS = 2048, 4096
Progress = Callable[[int], object]  # called with the number of lines that were just translated


@dataclass(frozen=True)
class Searcher:
    """Searches for the best hypotheses of one batch of sources."""

    model: StepModel[Any]
    options: DecodeConfig
    device: torch.device

    def __call__(self, sources: Sequence[list[int]]) -> list[list[Hypothesis]]:
        """Return the `nbest` hypotheses for each source, given without end-of-sentence tokens."""
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
    """Calls a function with the model and a batch of pairs. The caller passes both together."""

    model: Transformer

    def __call__(
        self, job: tuple[Callable[[Transformer, Sequence[T]], list[R]], Sequence[T]]
    ) -> list[R]:
        """Call the function with the pairs, and return one result per pair."""
        read, pairs = job
        return halve_if_out_of_memory(partial(read, self.model), pairs)


class Translator:
    """A model with its tokenizer, search options and worker processes.

    The worker processes stay alive between calls. They end at the end of a `with` block, when
    `close` is called, or when the object is deleted. Several threads may use the same translator
    at the same time.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        decode: DecodeConfig,
        compute: Compute,
        workers: Workers | None = None,
        tgt_lang: str | None = None,
        *,
        step_model: StepModel[Any] | None = None,
    ) -> None:
        """If `step_model` is given, the search uses it instead of `model`."""
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
        """Open a model folder, or the best checkpoint of a run folder.

        `precision` is auto, fp32, bf16, fp16 or int8. `threads` are CPU threads (default: all
        cores), divided among `workers` processes; None means one process per thread, which is
        fastest for many lines. `decode` overrides the model's search options (`beam_size`,
        `length_penalty`, ...; see `DecodeConfig`). The weights are memory-mapped, so the file must
        not be changed while the model is in use.

        Raises `CheckpointError` if the folder is missing, damaged or not a model.
        """
        compute = set_up_compute(device, precision, threads)
        shared = Workers.for_compute(workers, compute)
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
        """The model that the search uses, which is created on first use."""
        return self._step_model or EagerModel(self.model, self.compute.dtype)

    @cached_property
    def _search(self) -> Any:
        search = Searcher(self.step_model, self.decode, self.compute.device)
        shared = self.workers.share(partial(halve_if_out_of_memory, search))
        if self.workers.count > 1:  # the workers have their own copy
            del self.step_model
        return shared

    def translate(self, lines: Iterable[str], on_progress: Progress | None = None) -> list[str]:
        """Return the best translation of each line, in order. An empty line stays empty."""
        return [best.text for best, *_ in self.translate_stream(lines, on_progress)]

    def translate_stream(
        self, lines: Iterable[str], on_progress: Progress | None = None
    ) -> Iterator[list[Translation]]:
        """Yield the `nbest` translations of each line, best first. Reads `WINDOW` lines at once."""
        remaining = iter(lines)
        while window := list(itertools.islice(remaining, WINDOW)):
            yield from self.translate_window(window, on_progress)

    def translate_window(
        self, lines: Sequence[str], on_progress: Progress | None = None
    ) -> list[list[Translation]]:
        """Return the `nbest` translations of each line, best first.

        Lines of similar length are searched together.
        """
        by_line = self._splitter.split(lines)
        parts = [part for parts in by_line for part in parts]
        ends = {id(parts[-1]) for parts in by_line if parts}

        def report(batch: Sequence[int]) -> None:
            if on_progress is not None:
                on_progress(sum(id(parts[i]) in ends for i in batch))

        hyps = iter(self.search([part.ids for part in parts], report))
        if on_progress is not None:
            on_progress(sum(not parts for parts in by_line))
        return [self._join([(part, next(hyps)) for part in parts]) for parts in by_line]

    def search(
        self,
        sources: Sequence[list[int]],
        on_batch: Callable[[Sequence[int]], object] = lambda indices: None,
    ) -> list[list[Hypothesis]]:
        """Return the `nbest` hypotheses of each source.

        The ids have no end-of-sentence token. After each batch, `on_batch` is called with the
        indices of its sources. Raises `CheckpointError` if the model's scores are not finite.
        """
        by_source: list[list[Hypothesis]] = [[] for _ in sources]
        batches = list(self._batches(sources))
        jobs = [[sources[i] for i in batch] for batch in batches]
        for batch, batch_hyps in zip(batches, self._map(self._search, jobs), strict=True):
            for i, hyps in zip(batch, batch_hyps, strict=True):
                if not hyps:
                    raise CheckpointError(
                        "the model's scores are not finite, so its weights are unusable"
                    )
                by_source[i] = hyps
            on_batch(batch)
        return by_source

    def likelihood(self, pairs: Iterable[tuple[str, str]]) -> Iterator[TokenScores]:
        """Yield the token log-probabilities of each target, given (source, target) texts."""
        remaining = iter(pairs)
        while window := list(itertools.islice(remaining, READ_WINDOW)):
            src, tgt = zip(*window, strict=True)
            ids = self.tokenizer.encode_src(src), self.tokenizer.encode_tgt(tgt)
            yield from self.likelihood_of_ids(list(zip(*ids, strict=True)))

    def likelihood_of_ids(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[TokenScores]:
        """Like `likelihood`, for pairs of ids without end-of-sentence tokens."""
        read = partial(token_log_probs, compute=self.compute)
        log_probs = self._read(read, pairs, pairs, SCORED_TOKENS)
        return [TokenScores(tgt, row) for (_, tgt), row in zip(pairs, log_probs, strict=True)]

    def align(self, lines: Sequence[str], translations: Sequence[Translation]) -> list[Alignment]:
        """Align the words of each line with its translation, in fp32; see `mt.decode.alignment`."""
        numbered = numbered_parts(self.tokenizer, lines, translations)
        parts = [part for _, part in numbered]
        ids = [(part.translated.src, part.translated.tgt) for part in parts]
        # These are sets because a word that was cut in two is aligned twice.
        by_line: list[set[tuple[int, int]]] = [set() for _ in lines]
        for (line, _), links in zip(
            numbered, self._read(align_batch, parts, ids, ALIGNED_TOKENS), strict=True
        ):
            by_line[line].update(links)
        return [sorted(alignment) for alignment in by_line]

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
        """Call `read` for all items in batches of similar length, and return the results.

        `ids` are the source and target ids of each item, without end-of-sentence tokens. A batch
        has at most `max_tokens` tokens, which is rows x length of the longest side.
        """
        src_lens, tgt_lens = (np.array([len(pair[side]) + 1 for pair in ids]) for side in (0, 1))
        buckets = token_buckets(src_lens, tgt_lens, max_tokens)
        jobs = [(read, [items[i] for i in bucket]) for bucket in buckets]
        by_item: dict[int, R] = {}
        for bucket, results in zip(buckets, self._map(self._reader, jobs), strict=True):
            by_item.update(zip(bucket.tolist(), results, strict=True))
        return [by_item[i] for i in range(len(items))]

    def _map(
        self, work: Callable[[T], R] | SharedFunction[T, R], items: Sequence[T]
    ) -> Iterator[R]:
        """Yield `work(item)` for each item, computed by the workers, or by this process."""
        with contextlib.closing(self.workers.map(work, items)) as results:
            while True:
                with self.compute.temporary_process_threads():
                    result = next(results, _END)
                if result is _END:
                    return
                yield result  # type: ignore[misc]

    def _batches(self, sources: Sequence[list[int]]) -> Iterator[list[int]]:
        """Yield batches of sources with similar lengths, as indices. The longest come first.

        A batch has at most `batch_size` sentences and `max_tokens` tokens, including padding.
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
        """Join the k-th hypotheses of all parts to the line's k-th translation, for every k."""
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


_END = object()  # marks the end of the results


def search_options(defaults: DecodeConfig, overrides: Mapping[str, object]) -> DecodeConfig:
    """Return a model's search options with `overrides`. None does not change an option.

    Raises `ConfigError` for invalid options.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return DecodeConfig.model_validate({**defaults.model_dump(), **given})
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
