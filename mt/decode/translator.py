"""Text in, text out, in input order: the one way from a model to translations that training, `mt translate` and `mt evaluate` share."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import ValidationError

from mt.checkpoint import load_model
from mt.config import DecodeConfig
from mt.data.batching import pad_rows
from mt.data.tokenizer import EOS_ID, PAD_ID, Tokenizer
from mt.decode.search import Hypothesis, SearchConfig, beam_search, greedy_search, max_output_lens
from mt.decode.workers import Workers
from mt.device import Compute, choose_compute, in_halves
from mt.errors import CheckpointError, ConfigError
from mt.model.inference import InferenceModel
from mt.model.transformer import Transformer

logger = logging.getLogger(__name__)

WINDOW = 8192  # lines read ahead and sorted by length together; bounds the memory of a stream


@dataclass(frozen=True)
class TranslatedPart:
    """The ids of a line, or of a piece of one that was too long, and those of its translation; both without end of sentence."""

    src: list[int]
    tgt: list[int]


@dataclass(frozen=True)
class Translation:
    """One translation of one line."""

    text: str
    score: float  # log-probability / length**length_penalty; of a split line, the mean over its parts
    parts: list[TranslatedPart]  # several where the source was too long; none where the line has no words


@dataclass(frozen=True)
class _Part:
    """A piece of a line that is searched by itself."""

    line: int
    ids: list[int]  # without end of sentence
    is_first: bool  # of its line


@dataclass(frozen=True)
class Searcher:
    """A model and how to search with it: ids to hypotheses, in one batch."""

    model: InferenceModel
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
        return beam_search(self.model, src, src_mask, max_lens, SearchConfig(options.beam_size, options.nbest, options.length_penalty))


class Translator:
    """A model, its tokenizer, and how to search."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, compute: Compute, workers: Workers | None = None
    ) -> None:
        self.tokenizer, self.decode, self.compute, self.workers = tokenizer, decode, compute, workers or Workers()
        self.search_with(InferenceModel(model, compute.dtype))
        self.on_progress: Callable[[int], object] = lambda num_lines: None  # called with the number of lines that were just translated
        self.num_split = 0  # lines so far that were translated in parts

    def search_with(self, model: InferenceModel) -> None:
        """Use this model from now on."""
        searcher = Searcher(model, self.decode, self.compute.device)
        self.searcher = searcher if self.workers.count == 1 else None  # several workers have it instead
        self._search = self.workers.share(partial(in_halves, searcher))

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

        `precision` is auto, fp32, bf16, fp16 or int8. `workers` processes share the `threads` (all cores) of a CPU; None takes one to each
        thread, the fastest for many lines. `decode` overrides the model's own search options (`beam_size`, `length_penalty`, ...: see
        `DecodeConfig`).
        Raises `CheckpointError` for a folder that is missing, damaged or something else.
        """
        compute = choose_compute(device, precision, threads)
        shared = Workers.choose(workers, compute)
        loaded = load_model(Path(path), compute.device)
        return cls(loaded.model, loaded.tokenizer, search_options(loaded.config.decode, decode), compute, shared)

    def translate(self, lines: Iterable[str]) -> list[str]:
        """The best translation of each line, in order. An empty line stays empty."""
        return [translations[0].text for translations in self.translate_stream(lines)]

    def translate_stream(self, lines: Iterable[str]) -> Iterator[list[Translation]]:
        """The `nbest` translations of each line, best first, in order; reads `WINDOW` lines ahead."""
        remaining = iter(lines)
        while window := list(itertools.islice(remaining, WINDOW)):
            yield from self._translate_window(window)

    def _translate_window(self, lines: Sequence[str]) -> list[list[Translation]]:
        parts = [
            _Part(i, ids, is_first=not number)
            for i, line in enumerate(self.tokenizer.encode_src(lines))
            for number, ids in enumerate(self._split(line))
        ]
        found = self.search([part.ids for part in parts], lambda batch: self.on_progress(sum(parts[i].is_first for i in batch)))
        by_line: list[list[tuple[list[int], list[Hypothesis]]]] = [[] for _ in lines]
        for part, hyps in zip(parts, found, strict=True):
            by_line[part.line].append((part.ids, hyps))
        self.num_split += sum(len(hyps) > 1 for hyps in by_line)
        self.on_progress(sum(not hyps for hyps in by_line))
        return [self._join(hyps) for hyps in by_line]

    def search(
        self, sources: Sequence[list[int]], on_batch: Callable[[Sequence[int]], object] = lambda indices: None
    ) -> list[list[Hypothesis]]:
        """The `nbest` hypotheses of each of `sources`, ids without end of sentence; `on_batch` hears which have just been found.

        Raises `CheckpointError` where the model's scores are not finite.
        """
        found: list[list[Hypothesis]] = [[] for _ in sources]
        batches = list(self._batches(sources))
        with contextlib.closing(self.workers.map(self._search, [[sources[i] for i in batch] for batch in batches])) as results:
            for batch, batch_hyps in zip(batches, results, strict=True):
                for i, hyps in zip(batch, batch_hyps, strict=True):
                    if not hyps:
                        raise CheckpointError("the model's scores are not finite: its weights are not usable")
                    found[i] = hyps
                on_batch(batch)
        return found

    def _split(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut an over-long line at the last word boundary that fits; a line without ids has no parts."""
        limit = self.decode.max_src_len
        while len(ids) > limit:
            end = next((i for i in range(limit, limit // 2, -1) if self.tokenizer.starts_word(ids[i])), limit)
            yield ids[:end]
            ids = ids[end:]
        if ids:
            yield ids

    def _batches(self, sources: Sequence[list[int]]) -> Iterator[list[int]]:
        """Sources of similar length together, longest first, within `batch_size` sentences and `max_tokens` padded tokens."""
        batch: list[int] = []
        for i in sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True):
            width = len(sources[batch[0] if batch else i]) + 1
            if batch and (len(batch) == self.decode.batch_size or width * (len(batch) + 1) > self.decode.max_tokens):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _join(self, parts: list[tuple[list[int], list[Hypothesis]]]) -> list[Translation]:
        """Translations of a line from its parts and their hypotheses, rank by rank."""
        if not parts:
            return [Translation("", 0.0, [])]
        joined = []
        for ranked in zip(*(hyps for _, hyps in parts), strict=False):
            texts = [self.tokenizer.decode_tgt(hyp.tokens) for hyp in ranked]
            score = sum(hyp.score for hyp in ranked) / len(ranked)
            pairs = [TranslatedPart(src, hyp.tokens) for (src, _), hyp in zip(parts, ranked, strict=True)]
            joined.append(Translation(" ".join(text for text in texts if text), score, pairs))
        return joined


def search_options(own: DecodeConfig, overrides: Mapping[str, object]) -> DecodeConfig:
    """A model's own search options with others over them; None leaves one as it is. Raises `ConfigError`."""
    try:
        return DecodeConfig.model_validate({**own.model_dump(), **{key: value for key, value in overrides.items() if value is not None}})
    except ValidationError as error:
        raise ConfigError("; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())) from error
