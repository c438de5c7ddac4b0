"""Greedy and beam search over a decoder state, following CTranslate2's rules.

  - Each step considers the 2 x beam_size best continuations of a sentence's beams, by their total
    log-probability.
  - A continuation that ends the sentence finishes a hypothesis only if it is among the first
    beam_size. The next best continuation takes its place in the beam.
  - A sentence with beam_size finished hypotheses is done and leaves the batch.
  - When a sentence reaches its length limit, its beams become finished hypotheses as
    they are.
  - Finished hypotheses are ranked by log_prob / length**length_penalty; the length includes the
    end-of-sentence token.

The search of a sentence uses only numbers of that sentence, so the result does not depend on the
other sentences in the batch.
"""

import functools
import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from mt.data.tokenizer import BOS_ID, EOS_ID


class State(Protocol):
    """The part of a decoder state that the search uses; see `mt.model.state`."""

    def reorder(self, hyp_index: Tensor) -> None: ...
    def keep(self, sentence_index: Tensor) -> None: ...


S = TypeVar("S", bound=State)


class StepModel(Protocol[S]):
    """A model that decodes step by step; see `mt.decode.steps`."""

    def initial_state(self, src: Tensor, src_mask: Tensor) -> S: ...
    def step(self, tokens: Tensor, state: S) -> Tensor: ...


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one sentence, as token ids."""

    tokens: list[int]  # without the end-of-sentence token
    log_prob: float  # sum over all tokens, including the end-of-sentence token if it was reached
    score: float  # log_prob / length**length_penalty


@dataclass(frozen=True)
class SearchConfig:
    """Options of a beam search, except maximum lengths, which are given per sentence."""

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0


def max_output_lens(src_mask: Tensor, max_len_a: float, max_len_b: int) -> Tensor:
    """Return the maximum output length of each sentence [sentences].

    It depends only on the source length of that sentence. Both lengths include the end-of-sentence
    token.
    """
    lengths = src_mask.sum(dim=1)
    return lengths.new_tensor(
        [max_output_len(length, max_len_a, max_len_b) for length in lengths.tolist()]
    )


def max_output_len(src_len: int, max_len_a: float, max_len_b: int) -> int:
    """Return the maximum output length for a source of `src_len` tokens."""
    return int(src_len * max_len_a) + max_len_b


@torch.inference_mode()
def greedy_search(
    model: StepModel[S],
    src: Tensor,
    src_mask: Tensor,
    max_lens: Tensor,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """Take the most probable token at each step.

    Return a list with one hypothesis for each row of `src` [sentences, src_len].
    """
    state = model.initial_state(src, src_mask)
    sentences = torch.arange(
        len(src), device=src.device
    )  # the index in `src` of each row still being decoded
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
    """Return the `nbest` best hypotheses for each row of `src` [sentences, src_len], best first."""
    k = config.beam_size
    state = model.initial_state(src, src_mask)
    sentences = torch.arange(
        len(src), device=src.device
    )  # the index in `src` of each row still being decoded
    # All hypotheses begin the same way, so there is only one beam in the first step.
    tokens = torch.full((len(src), 1), BOS_ID, device=src.device)
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

        # Continue with the k best candidates that do not end. There are always k of them, because
        # each of the k beams has only one candidate that ends.
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
    """Return the `count` best continuations of each sentence over all its beams, best first.

    A continuation is a beam followed by one more token. `next_log_probs` is [sentences, beams,
    vocab_size], and `log_probs` [sentences, beams] are the log-probabilities of the beams so
    far. Returns total log-probabilities, beams and tokens, each [sentences, count], with fewer
    columns if there are fewer continuations.

    The vocabulary is divided into blocks. The `count` blocks with the best maxima contain the
    `count` best tokens, so only these blocks are searched.
    """
    sentences, beams, vocab_size = next_log_probs.shape
    count = min(count, beams * vocab_size)
    block_size = _block_size(vocab_size, count, beams)
    num_blocks = vocab_size // block_size

    # Block b has the tokens b, b + num_blocks, b + 2 num_blocks, ..., which is fastest for amax.
    maxima = next_log_probs.view(sentences, beams, block_size, num_blocks).amax(dim=2)
    best_blocks = (maxima + log_probs[:, :, None]).flatten(1).topk(count, dim=1).indices
    beam, block = best_blocks // num_blocks, best_blocks % num_blocks  # [sentences, count]

    offsets = torch.arange(block_size, device=log_probs.device) * num_blocks
    first = beam * vocab_size + block  # the first token of each block in the flat logits
    index = (first[:, :, None] + offsets).flatten(1)  # [sentences, count x block_size]
    totals = next_log_probs.flatten(1).gather(1, index) + log_probs.gather(1, index // vocab_size)
    scores, order = totals.topk(count, dim=1)
    index = index.gather(1, order)
    return scores, index // vocab_size, index % vocab_size


@functools.cache
def _block_size(vocab_size: int, count: int, beams: int) -> int:
    """Return the block size, a divisor of `vocab_size`, that makes `best_continuations` fastest.

    There must be at least `count` blocks. `best_continuations` first finds the maximum of each
    block, and then searches the best blocks. It is fastest if both take the same time. We measured
    that searching costs nine times as much per token as finding the maximum.
    """
    ideal = math.sqrt(beams * vocab_size / count) / 3
    divisors = (
        block
        for block in range(1, vocab_size + 1)
        if vocab_size % block == 0 and beams * vocab_size // block >= count
    )
    return min(divisors, key=lambda block: abs(math.log(block / ideal)))


def _select(history: Tensor, beams: Tensor) -> Tensor:
    """Select the rows `beams` [sentences, count] of each `history` [sentences, beams, length]."""
    return history.gather(1, beams[:, :, None].expand(-1, -1, history.shape[2]))


def _survivors(done: Tensor) -> Tensor:
    """Return the indices [kept] of the rows that are not done.

    The last rows fill the gaps that the finished rows leave, so that few rows have to move.
    """
    active = (~done).nonzero()[:, 0]
    order = torch.arange(len(active), device=done.device)
    order[done[: len(active)]] = active[active >= len(active)]
    return order


class _Finished:
    """The finished hypotheses for each sentence in a batch, at most `room` per sentence."""

    def __init__(self, src: Tensor, max_len: int, room: int) -> None:
        self.tokens = src.new_full((len(src), room, max_len), EOS_ID)
        self.lengths = src.new_ones(len(src), room)
        self.log_probs = torch.full((len(src), room), float("-inf"), device=src.device)
        self.count = src.new_zeros(len(src))

    def add(self, sentences: Tensor, finishing: Tensor, log_probs: Tensor, history: Tensor) -> None:
        """Add the hypotheses of `history` [rows, beams, length] that are marked in `finishing`.

        `finishing` is [rows, beams], and `sentences` [rows] are the indices of the sentences.
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
        """Return at most `nbest` hypotheses of each sentence, best first."""
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
