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

from mt.config import AUTO, DecodeConfig
from mt.config.languages import joint_between, parse_language
from mt.data.batch import pad_rows
from mt.data.sentences import sentence_starts
from mt.data.tokenizer import EOS_ID, PAD_ID, Tokenizer
from mt.decode.loading import load_model
from mt.decode.search import Hypothesis, SearchConfig, beam_search, greedy_search, max_output_lens
from mt.errors import CheckpointError, ConfigError
from mt.model.inference import InferenceModel
from mt.model.transformer import Transformer
from mt.runtime.device import Compute, choose_compute, in_halves
from mt.runtime.workers import Workers

logger = logging.getLogger(__name__)

WINDOW = 8192  # lines read ahead and sorted by length together; bounds the memory of a stream

_Encoded = tuple[
    tuple[int, str], list[int]
]  # where a text begins in its line, the text, and its ids


@dataclass(frozen=True)
class SourcePart:
    """A line, or a part of one, that is searched by itself."""

    ids: list[int]  # without end of sentence
    text: str  # of the sentences that were encoded together
    begin: int  # in their ids, where these are: above 0 only if the sentences were too long
    start: int  # character of the line at which the text begins


@dataclass(frozen=True)
class TranslatedPart:
    """A part of a line, and the ids of its translation, without end of sentence."""

    source: SourcePart
    tgt: list[int]
    start: int  # character of the line's translation at which this begins

    @property
    def src(self) -> list[int]:
        """The ids of the source."""
        return self.source.ids


@dataclass(frozen=True)
class Translation:
    """One translation of one line."""

    text: str
    score: (
        float  # log-probability / length**length_penalty; of a split line, the mean over its parts
    )
    parts: list[TranslatedPart]  # several if the source was split; none if the line has no words


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
        return beam_search(
            self.model,
            src,
            src_mask,
            max_lens,
            SearchConfig(options.beam_size, options.nbest, options.length_penalty),
        )


class Translator:
    """A model, its tokenizer, and how to search."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, decode: DecodeConfig, compute: Compute, workers: Workers | None = None,
        tgt_lang: str | None = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.decode, self.compute, self.workers = (
            tokenizer,
            decode,
            compute,
            workers or Workers(),
        )
        self.language = parse_language(tgt_lang)
        self.search_with(InferenceModel(model, compute.dtype))
        self.on_progress: Callable[[int], object] = lambda num_lines: (
            None
        )  # called with the number of lines that were just translated
        self.num_split = 0  # lines so far that were translated in parts

    def search_with(self, model: InferenceModel) -> None:
        """Use this model from now on."""
        searcher = Searcher(model, self.decode, self.compute.device)
        self.searcher = (
            searcher if self.workers.count == 1 else None
        )  # several workers have it instead
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
        options = search_options(loaded.config.decode, decode)
        return cls(
            loaded.model, loaded.tokenizer, options, compute, shared, loaded.config.data.tgt_lang
        )

    def translate(self, lines: Iterable[str]) -> list[str]:
        """The best translation of each line, in order. An empty line stays empty."""
        return [translations[0].text for translations in self.translate_stream(lines)]

    def translate_stream(self, lines: Iterable[str]) -> Iterator[list[Translation]]:
        """The `nbest` translations of each line, best first, in order; reads `WINDOW` lines ahead."""
        remaining = iter(lines)
        while window := list(itertools.islice(remaining, WINDOW)):
            yield from self.translate_window(window)

    def translate_window(self, lines: Sequence[str]) -> list[list[Translation]]:
        """The `nbest` translations of each of these lines, best first; lines of similar length are searched together."""
        by_line = self._split_lines(lines)
        parts = [part for parts in by_line for part in parts]
        ends = {id(parts[-1]) for parts in by_line if parts}
        hyps = iter(
            self.search(
                [part.ids for part in parts],
                lambda batch: self.on_progress(sum(id(parts[i]) in ends for i in batch)),
            )
        )
        self.num_split += sum(len(parts) > 1 for parts in by_line)
        self.on_progress(sum(not parts for parts in by_line))
        return [self._join([(part, next(hyps)) for part in parts]) for parts in by_line]

    def search(
        self,
        sources: Sequence[list[int]],
        on_batch: Callable[[Sequence[int]], object] = lambda indices: None,
    ) -> list[list[Hypothesis]]:
        """The `nbest` hypotheses of each of `sources`, ids without end of sentence; `on_batch` hears which have just been found.

        Raises `CheckpointError` where the model's scores are not finite.
        """
        found: list[list[Hypothesis]] = [[] for _ in sources]
        batches = list(self._batches(sources))
        with contextlib.closing(
            self.workers.map(self._search, [[sources[i] for i in batch] for batch in batches])
        ) as results:
            for batch, batch_hyps in zip(batches, results, strict=True):
                for i, hyps in zip(batch, batch_hyps, strict=True):
                    if not hyps:
                        raise CheckpointError(
                            "the model's scores are not finite: its weights are not usable"
                        )
                    found[i] = hyps
                on_batch(batch)
        return found

    def _split_lines(self, lines: Sequence[str]) -> list[list[SourcePart]]:
        """The parts of each line: itself if it is no longer than what training saw, none if it has no words."""
        starts = [self._part_starts(line) for line in lines]
        texts = [
            (start, line[start:end])
            for line, begins in zip(lines, starts, strict=True)
            for start, end in itertools.pairwise([*begins, len(line)])
        ]
        encoded = iter(
            zip(texts, self.tokenizer.encode_src([text for _, text in texts]), strict=True)
        )
        found: list[list[SourcePart]] = []
        for line, begins in zip(lines, starts, strict=True):
            sentences = [next(encoded) for _ in begins]
            if len(begins) > 1:
                sentences = self._packed(line, sentences)
            found.append(
                [part for (start, text), ids in sentences for part in self._cut(ids, text, start)]
            )
        return found

    def _part_starts(self, line: str) -> list[int]:
        """Where the sentences of a line begin, if it is to be split at them at all; else 0."""
        limit = self.decode.max_sentences
        if limit is None or limit == AUTO:
            return [0]
        starts = sentence_starts(line)
        return starts if len(starts) > limit or len(line) > self.decode.longest_src else [0]

    def _packed(self, line: str, sentences: Sequence[_Encoded]) -> list[_Encoded]:
        """Sentences of a line put together again, as many as `max_sentences` and `max_src_len` allow."""
        max_sentences = int(self.decode.max_sentences or 1)
        packed: list[_Encoded] = []
        group: list[_Encoded] = []
        for sentence in sentences:
            num_ids = sum(len(ids) for _, ids in [*group, sentence])
            if group and (len(group) == max_sentences or num_ids > self.decode.longest_src):
                packed.append(self._together(line, group))
                group = []
            group.append(sentence)
        return [*packed, self._together(line, group)]

    def _together(self, line: str, group: Sequence[_Encoded]) -> _Encoded:
        if len(group) == 1:
            return group[0]
        (start, _), _ = group[0]
        (last, text), _ = group[-1]
        whole = line[start : last + len(text)]
        return (start, whole), self.tokenizer.encode_src([whole])[0]

    def _cut(self, ids: list[int], text: str, start: int) -> Iterator[SourcePart]:
        """One part, or, of too many ids, several that end at the last word boundary that fits; none without ids."""
        limit, begin = self.decode.longest_src, 0
        while len(ids) - begin > limit:
            fits = range(begin + limit, begin + limit // 2, -1)
            end = next((i for i in fits if self.tokenizer.starts_word(ids[i])), begin + limit)
            yield SourcePart(ids[begin:end], text, begin, start)
            begin = end
        if begin < len(ids):
            yield SourcePart(ids[begin:], text, begin, start)

    def _batches(self, sources: Sequence[list[int]]) -> Iterator[list[int]]:
        """Sources of similar length together, longest first, within `batch_size` sentences and `max_tokens` padded tokens."""
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
                    whole += joint_between(whole, text, self.language)
                translated.append(TranslatedPart(source, hyp.tokens, len(whole)))
                whole += text
            joined.append(
                Translation(whole, sum(hyp.score for hyp in ranked) / len(ranked), translated)
            )
        return joined


def search_options(own: DecodeConfig, overrides: Mapping[str, object]) -> DecodeConfig:
    """A model's own search options with others over them; None leaves one as it is. Raises `ConfigError`."""
    try:
        return DecodeConfig.model_validate(
            {
                **own.model_dump(),
                **{key: value for key, value in overrides.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise ConfigError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from error
