"""Greedy and beam search over a decoder state, following CTranslate2's rules.

  - Each step looks at the 2 x beam_size best continuations of a sentence's beams, by sum of
    log-probabilities.
  - An end of sentence finishes a hypothesis only among the first beam_size of them; the next best
    continuation takes its place.
  - A sentence is done with beam_size finished hypotheses, and leaves the batch.
  - At a sentence's own length limit its beams are taken as they are.
  - Finished hypotheses compare by sum / length**length_penalty, the length counting the end of
    sentence.
Each sentence follows its own rules from its own numbers, so its neighbours in the batch make no
difference.
"""

import functools
import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mt.data.tokenizer import BOS_ID, EOS_ID


class State(Protocol):
    """What a search may do with a decoder's state; see `mt.model.state`."""

    def reorder(self, hyp_index: Tensor) -> None: ...
    def keep(self, sentence_index: Tensor) -> None: ...


S = TypeVar("S", bound=State)


class StepModel(Protocol[S]):
    """What a search needs of a model; see `mt.decode.steps`."""

    def initial_state(self, src: Tensor, src_mask: Tensor) -> S: ...
    def step(self, tokens: Tensor, state: S) -> Tensor: ...


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one sentence."""

    tokens: list[int]  # without end of sentence
    log_prob: float  # sum over all tokens, end of sentence included where it was reached
    score: float  # log_prob / length**length_penalty


@dataclass(frozen=True)
class SearchConfig:
    """How to search; `max_lens` are given per sentence."""

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0


def max_output_lens(src_mask: Tensor, max_len_a: float, max_len_b: int) -> Tensor:
    """Length limit [sentences], end of sentence included, from each sentence's own source length
    (its end of sentence included).
    """
    lengths = src_mask.sum(dim=1)
    return lengths.new_tensor(
        [max_output_len(length, max_len_a, max_len_b) for length in lengths.tolist()]
    )


def max_output_len(src_len: int, max_len_a: float, max_len_b: int) -> int:
    """The same of one sentence."""
    return int(src_len * max_len_a) + max_len_b


@torch.inference_mode()
def greedy_search(
    model: StepModel[S],
    src: Tensor,
    src_mask: Tensor,
    max_lens: Tensor,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """The most probable token at each step: one hypothesis for each row of `src` [sentences,
    src_len].
    """
    state = model.initial_state(src, src_mask)
    sentences = torch.arange(len(src), device=src.device)  # of each row, its index in `src`
    tokens = torch.full_like(sentences, BOS_ID)
    history, log_probs = tokens.new_empty(len(src), 0), torch.zeros(len(src), device=src.device)
    finished = _Finished(src, int(max_lens.max()), 1)
    while len(sentences):
        best, tokens = model.step(tokens[:, None], state)[:, 0].max(dim=-1)
        history, log_probs = torch.cat([history, tokens[:, None]], dim=1), log_probs + best
        done = (tokens == EOS_ID) | (history.shape[1] >= max_lens[sentences])
        if done.any():
            finished.add(
                sentences,
                done[:, None] & log_probs[:, None].isfinite(),
                log_probs[:, None],
                history[:, None],
            )
            kept = _survivors(done)
            state.keep(kept)
            sentences, tokens, history, log_probs = (
                sentences[kept],
                tokens[kept],
                history[kept],
                log_probs[kept],
            )
    return finished.best(1, length_penalty)


@torch.inference_mode()
def beam_search(
    model: StepModel[S], src: Tensor, src_mask: Tensor, max_lens: Tensor, config: SearchConfig
) -> list[list[Hypothesis]]:
    """The `nbest` best hypotheses, best first, for each row of `src` [sentences, src_len]."""
    k = config.beam_size
    state = model.initial_state(src, src_mask)
    sentences = torch.arange(len(src), device=src.device)  # of each row, its index in `src`
    tokens = torch.full((len(src), 1), BOS_ID, device=src.device)  # all beams start alike: as one
    log_probs = torch.zeros(len(src), 1, device=src.device)
    history = tokens.new_empty(len(src), 1, 0)
    finished = _Finished(src, int(max_lens.max()), 2 * k)
    while len(sentences):
        scores, origins, candidates = best_continuations(
            model.step(tokens, state), log_probs, 2 * k
        )  # [sentences, 2k]
        history = torch.cat([_select(history, origins), candidates[:, :, None]], dim=2)
        ends, at_limit = candidates == EOS_ID, history.shape[2] >= max_lens[sentences]
        finishing = (ends | at_limit[:, None]) & scores.isfinite()
        finishing[:, k:] = False

        # The beams go on with the k best candidates that do not end; at most k of the 2k end, one
        # for each beam.
        chosen = ends.int().sort(dim=1, stable=True).indices[:, :k]
        log_probs = scores.gather(1, chosen).masked_fill_(ends.gather(1, chosen), float("-inf"))
        done = at_limit | ~log_probs.isfinite().any(dim=1)
        if finishing.any():
            finished.add(sentences, finishing, scores, history)
            done |= finished.count[sentences] >= k
        tokens, history = candidates.gather(1, chosen), _select(history, chosen)
        state.reorder(origins.gather(1, chosen))
        if done.any():
            kept = _survivors(done)
            state.keep(kept)
            sentences, tokens, history, log_probs = (
                sentences[kept],
                tokens[kept],
                history[kept],
                log_probs[kept],
            )
    return finished.best(config.nbest, config.length_penalty)


def best_continuations(
    next_log_probs: Tensor, log_probs: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best next tokens of each sentence over all its beams, best first: total
    log-probability, beam and token.

    Of `next_log_probs` [sentences, beams, vocab_size] and the beams' own `log_probs` [sentences,
    beams]; each result is [sentences, count], or fewer where there are not so many. The vocabulary
    is looked at in blocks: the best tokens are in the `count` blocks whose best token is best, and
    of the others only the best is looked at.
    """
    sentences, beams, vocab_size = next_log_probs.shape
    count = min(count, beams * vocab_size)
    block = _block_size(vocab_size, count, beams)
    num_blocks = (
        vocab_size // block
    )  # a block is every num_blocks-th token, so that maxima are taken of whole rows
    best = (
        next_log_probs.view(sentences, beams, block, num_blocks).amax(dim=2) + log_probs[:, :, None]
    )
    blocks = best.flatten(1).topk(count, dim=1).indices[:, :, None]  # [sentences, count, 1]
    steps = torch.arange(block, device=log_probs.device) * num_blocks
    index = (blocks // num_blocks * vocab_size + blocks % num_blocks + steps).flatten(
        1
    )  # of tokens, within a sentence's logits
    totals = next_log_probs.flatten(1).gather(1, index) + log_probs.gather(1, index // vocab_size)
    scores, place = totals.topk(count, dim=1)
    index = index.gather(1, place)
    return scores, index // vocab_size, index % vocab_size


@functools.cache
def _block_size(vocab_size: int, count: int, beams: int) -> int:
    """The divisor of `vocab_size` where both looks take about the same time, and that leaves
    `count` blocks or more.
    """
    ideal = (
        math.sqrt(beams * vocab_size / count) / 3
    )  # measured: a token of the second look costs as much as nine of the first
    divisors = (
        block
        for block in range(1, vocab_size + 1)
        if vocab_size % block == 0 and beams * vocab_size // block >= count
    )
    return min(divisors, key=lambda block: abs(math.log(block / ideal)))


def _select(history: Tensor, beams: Tensor) -> Tensor:
    """The rows `beams` [sentences, count] of each sentence's `history` [sentences, beams, length]."""
    return history.gather(1, beams[:, :, None].expand(-1, -1, history.shape[2]))


def _survivors(done: Tensor) -> Tensor:
    """The rows [kept] that are not done: the last ones in the gaps of the first, so that few change
    place.
    """
    active = (~done).nonzero()[:, 0]
    order = torch.arange(len(active), device=done.device)
    order[done[: len(active)]] = active[active >= len(active)]
    return order


class _Finished:
    """The finished hypotheses of every sentence of a batch, at most `room` each."""

    def __init__(self, src: Tensor, max_len: int, room: int) -> None:
        self.tokens = src.new_full((len(src), room, max_len), EOS_ID)
        self.lengths = src.new_ones(len(src), room)
        self.log_probs = torch.full((len(src), room), float("-inf"), device=src.device)
        self.count = src.new_zeros(len(src))

    def add(self, sentences: Tensor, finishing: Tensor, log_probs: Tensor, history: Tensor) -> None:
        """Take those of the hypotheses `history` [rows, beams, length] of `sentences` [rows] where
        `finishing` [rows, beams].
        """
        rows, beams = finishing.nonzero(as_tuple=True)
        taken = sentences[rows]
        place = self.count[taken] + finishing.cumsum(dim=1)[rows, beams] - 1
        length = history.shape[2]
        self.tokens[taken, place, :length] = history[rows, beams]
        self.lengths[taken, place] = length
        self.log_probs[taken, place] = log_probs[rows, beams]
        self.count[sentences] += finishing.sum(dim=1)

    def best(self, nbest: int, length_penalty: float) -> list[list[Hypothesis]]:
        """The best of each sentence, best first."""
        scores = self.log_probs.double() / self.lengths.double() ** length_penalty
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, :nbest]
        columns = (
            _select(self.tokens, order),
            self.lengths.gather(1, order),
            self.log_probs.gather(1, order),
            scores,
            self.count,
        )
        return [
            [_hypothesis(*hyp) for hyp in zip(*hyps, strict=False)][:count]
            for *hyps, count in zip(*(column.tolist() for column in columns), strict=True)
        ]


def _hypothesis(tokens: list[int], length: int, log_prob: float, score: float) -> Hypothesis:
    return Hypothesis(
        tokens[: length - 1] if tokens[length - 1] == EOS_ID else tokens[:length], log_prob, score
    )
