"""Text in, text out, in input order: the one way from a model to translations that training, `mt translate` and `mt evaluate` share."""

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from mt.checkpoint import load_model
from mt.config import DecodeConfig
from mt.data.batching import pad_rows
from mt.data.tokenizer import EOS_ID, PAD_ID, Tokenizer
from mt.decode.search import Hypothesis, SearchConfig, beam_search, greedy_search, max_output_lens
from mt.device import Compute, choose_compute, in_halves
from mt.errors import CheckpointError, ConfigError
from mt.model.inference import InferenceModel
from mt.model.transformer import Transformer

logger = logging.getLogger(__name__)

WINDOW = 8192  # lines read ahead and sorted by length together; bounds the memory of a stream


@dataclass(frozen=True)
class Translation:
    """One translation of one line."""

    text: str
    score: float    # log-probability / length**length_penalty; of a split line, the mean over its parts
    num_parts: int  # more than 1 where the source was too long and was translated in parts


@dataclass(frozen=True)
class _Part:
    """A piece of a line that is searched by itself."""

    line: int
    ids: list[int]  # without end of sentence


class Translator:
    """A model, its tokenizer, and how to search."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, compute: Compute) -> None:
        self.model, self.tokenizer, self.decode, self.compute = InferenceModel(model, compute.dtype), tokenizer, decode, compute
        self.workers = 1
        self.num_split = 0  # lines so far that were translated in parts

    @classmethod
    def load(
        cls, path: str | Path, *, device: str = "auto", precision: str = "auto", threads: int | None = None, **decode: object
    ) -> "Translator":
        """Open a model folder, or a run folder (its best checkpoint).

        `decode` overrides the model's own search options (`beam_size`, `length_penalty`, ...: see `DecodeConfig`).
        Raises `CheckpointError` for a folder that is missing, damaged or something else.
        """
        compute = choose_compute(device, precision, threads)
        loaded = load_model(Path(path), compute.device)
        return cls(loaded.model, loaded.tokenizer, search_options(loaded.config.decode, decode), compute)

    def translate(self, lines: Iterable[str]) -> list[str]:
        """The best translation of each line, in order. An empty line stays empty."""
        return [translations[0].text for translations in self.translate_stream(lines)]

    def translate_stream(self, lines: Iterable[str]) -> Iterator[list[Translation]]:
        """The `nbest` translations of each line, best first, in order; reads `WINDOW` lines ahead."""
        remaining = iter(lines)
        while window := list(itertools.islice(remaining, WINDOW)):
            yield from self._translate_window(window)

    def _translate_window(self, lines: Sequence[str]) -> list[list[Translation]]:
        parts = [_Part(i, ids) for i, line in enumerate(self.tokenizer.encode_src(lines)) for ids in self._split(line)]
        found: list[list[Hypothesis]] = [[] for _ in parts]
        order = sorted(range(len(parts)), key=lambda i: len(parts[i].ids), reverse=True)
        batches = list(self._batches(order, parts))
        for batch, results in zip(batches, self._searched([[parts[i].ids for i in batch] for batch in batches]), strict=True):
            for i, hyps in zip(batch, results, strict=True):
                if not hyps:
                    raise CheckpointError("the model's scores are not finite: its weights are not usable")
                found[i] = hyps
        by_line: list[list[list[Hypothesis]]] = [[] for _ in lines]
        for part, hyps in zip(parts, found, strict=True):
            by_line[part.line].append(hyps)
        self.num_split += sum(len(hyps) > 1 for hyps in by_line)
        return [self._join(hyps) for hyps in by_line]

    def _split(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut an over-long line at the last word boundary that fits; a line without ids has no parts."""
        limit = self.decode.max_src_len
        while len(ids) > limit:
            end = next((i for i in range(limit, limit // 2, -1) if self.tokenizer.starts_word(ids[i])), limit)
            yield ids[:end]
            ids = ids[end:]
        if ids:
            yield ids

    def _batches(self, order: list[int], parts: list[_Part]) -> Iterator[list[int]]:
        """Parts of similar length together, longest first, within `batch_size` sentences and `max_tokens` padded tokens."""
        batch: list[int] = []
        for i in order:
            width = len(parts[batch[0]].ids if batch else parts[i].ids) + 1
            if batch and (len(batch) == self.decode.batch_size or width * (len(batch) + 1) > self.decode.max_tokens):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _searched(self, batches: Sequence[Sequence[list[int]]]) -> Iterator[list[list[Hypothesis]]]:
        """The results of each batch of sources, in order; on a CPU several batches at a time, each by one thread of its own."""
        workers = min(self.workers, len(batches))
        if workers <= 1:
            yield from (in_halves(self._search, batch) for batch in batches)
            return
        with ThreadPoolExecutor(workers, "mt-translate", torch.set_num_threads, (1,)) as pool:
            yield from pool.map(lambda batch: in_halves(self._search, batch), batches)

    def _search(self, sources: Sequence[list[int]]) -> list[list[Hypothesis]]:
        options = self.decode
        src = pad_rows(sources, suffix=EOS_ID).to(self.compute.device)
        src_mask = src != PAD_ID
        max_lens = max_output_lens(src_mask, options.max_len_a, options.max_len_b)
        if options.beam_size == 1:
            return greedy_search(self.model, src, src_mask, max_lens, options.length_penalty)
        return beam_search(self.model, src, src_mask, max_lens, SearchConfig(options.beam_size, options.nbest, options.length_penalty))

    def _join(self, parts: list[list[Hypothesis]]) -> list[Translation]:
        """Translations of a line from the hypotheses of its parts, rank by rank."""
        if not parts:
            return [Translation("", 0.0, 0)]
        ranks = min(len(hyps) for hyps in parts)
        joined = []
        for rank in range(ranks):
            texts = [self.tokenizer.decode_tgt(hyps[rank].tokens) for hyps in parts]
            score = sum(hyps[rank].score for hyps in parts) / len(parts)
            joined.append(Translation(" ".join(text for text in texts if text), score, len(parts)))
        return joined


def search_options(own: DecodeConfig, overrides: Mapping[str, object]) -> DecodeConfig:
    """A model's own search options with others over them; None leaves one as it is. Raises `ConfigError`."""
    try:
        return DecodeConfig.model_validate({**own.model_dump(), **{key: value for key, value in overrides.items() if value is not None}})
    except ValidationError as error:
        raise ConfigError("; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())) from error
