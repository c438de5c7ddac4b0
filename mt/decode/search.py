"""Greedy and beam search over a decoder state, following CTranslate2's rules.

  - Each step looks at the 2 x beam_size best continuations of a sentence's beams, by sum of log-probabilities.
  - An end of sentence finishes a hypothesis only among the first beam_size of them; the next best continuation takes its place.
  - A sentence is done with beam_size finished hypotheses, and leaves the batch.
  - At a sentence's own length limit its beams are taken as they are.
  - Finished hypotheses compare by sum / length**length_penalty, the length counting the end of sentence.
Each sentence follows its own rules from its own numbers, so its neighbours in the batch make no difference.
"""

from dataclasses import dataclass, field
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
    """What a search needs of a model."""

    def initial_state(self, src: Tensor, src_mask: Tensor, beam_size: int = 1) -> S: ...
    def step(self, tokens: Tensor, state: S) -> Tensor: ...


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one sentence."""

    tokens: list[int]  # without end of sentence
    log_prob: float    # sum over all tokens, end of sentence included where it was reached
    score: float       # log_prob / length**length_penalty


@dataclass(frozen=True)
class SearchConfig:
    """How to search; `max_lens` are given per sentence."""

    beam_size: int = 5
    nbest: int = 1
    length_penalty: float = 1.0


def max_output_lens(src_mask: Tensor, max_len_a: float, max_len_b: int) -> Tensor:
    """Length limit [sentences], end of sentence included, from each sentence's own source length (its end of sentence included)."""
    return (src_mask.sum(dim=1) * max_len_a + max_len_b).long()


@torch.inference_mode()
def greedy_search(
    model: StepModel[S], src: Tensor, src_mask: Tensor, max_lens: Tensor, length_penalty: float = 1.0
) -> list[list[Hypothesis]]:
    """The most probable token at each step: one hypothesis for each row of `src` [sentences, src_len]."""
    state = model.initial_state(src, src_mask)
    results: list[list[Hypothesis]] = [[] for _ in src]
    sentences = torch.arange(len(src), device=src.device)
    tokens = torch.full_like(sentences, BOS_ID)
    history, log_probs = tokens.new_empty(len(src), 0), torch.zeros(len(src), device=src.device)
    while len(sentences):
        best, tokens = model.step(tokens, state).float().log_softmax(dim=-1).max(dim=-1)
        history, log_probs = torch.cat([history, tokens[:, None]], dim=1), log_probs + best
        done = (tokens == EOS_ID) | (history.shape[1] >= max_lens[sentences])
        for row in done.nonzero()[:, 0].tolist():
            results[int(sentences[row])] = [_hypothesis(history[row].tolist(), float(log_probs[row]), length_penalty)]
        if done.any():
            active = (~done).nonzero()[:, 0]
            state.keep(active)
            sentences, tokens, history, log_probs = sentences[active], tokens[active], history[active], log_probs[active]
    return results


@dataclass
class _Beams:
    """The live hypotheses of the sentences still in the batch; k = beam_size."""

    sentences: Tensor                    # [sentences] index in the whole batch
    tokens: Tensor                       # [sentences, k] last token
    log_probs: Tensor                    # [sentences, k]; -inf for a beam that does not live
    history: Tensor                      # [sentences, k, step]
    finished: list[list[Hypothesis]] = field(default_factory=list)  # by index in the whole batch

    def keep(self, index: Tensor) -> None:
        self.sentences, self.tokens = self.sentences[index], self.tokens[index]
        self.log_probs, self.history = self.log_probs[index], self.history[index]


@torch.inference_mode()
def beam_search(
    model: StepModel[S], src: Tensor, src_mask: Tensor, max_lens: Tensor, config: SearchConfig
) -> list[list[Hypothesis]]:
    """The `nbest` best hypotheses, best first, for each row of `src` [sentences, src_len]."""
    k = config.beam_size
    state = model.initial_state(src, src_mask, k)
    log_probs = torch.full((len(src), k), float("-inf"), device=src.device)
    log_probs[:, 0] = 0.0  # all beams start alike: only the first lives
    beams = _Beams(
        sentences=torch.arange(len(src), device=src.device),
        tokens=torch.full((len(src), k), BOS_ID, device=src.device),
        log_probs=log_probs,
        history=torch.empty(len(src), k, 0, dtype=torch.int64, device=src.device),
        finished=[[] for _ in src],
    )
    while len(beams.sentences):
        logits = model.step(beams.tokens.flatten(), state)
        done, origins = _advance(beams, logits, max_lens, config)
        offsets = torch.arange(len(origins), device=src.device)[:, None] * k
        state.reorder((offsets + origins).flatten())
        if done.any():
            active = (~done).nonzero()[:, 0]
            beams.keep(active)
            state.keep(active)
    return [sorted(hyps, key=lambda hyp: -hyp.score)[: config.nbest] for hyps in beams.finished]


def _advance(beams: _Beams, logits: Tensor, max_lens: Tensor, config: SearchConfig) -> tuple[Tensor, Tensor]:
    """Move every beam one token on; returns which sentences are done [sentences] and each beam's origin [sentences, k]."""
    k, vocab_size = config.beam_size, logits.shape[-1]
    totals = logits.float().log_softmax(dim=-1).view(-1, k, vocab_size) + beams.log_probs[:, :, None]
    scores, index = totals.flatten(1).topk(min(2 * k, k * vocab_size), dim=1)  # [sentences, 2k]
    origins, tokens = index // vocab_size, index % vocab_size
    history = torch.cat([beams.history.gather(1, origins[:, :, None].expand(-1, -1, beams.history.shape[2])), tokens[:, :, None]], dim=2)

    at_limit = history.shape[2] >= max_lens[beams.sentences]  # [sentences]
    ends = tokens == EOS_ID
    finishing = (ends | at_limit[:, None]) & scores.isfinite()
    finishing[:, k:] = False
    for sentence, candidate in finishing.nonzero().tolist():
        hypothesis = _hypothesis(history[sentence, candidate].tolist(), float(scores[sentence, candidate]), config.length_penalty)
        beams.finished[int(beams.sentences[sentence])].append(hypothesis)

    # The beams go on with the k best candidates that do not end; at most k of the 2k end, one for each beam.
    chosen = ends.int().sort(dim=1, stable=True).indices[:, :k]
    beams.tokens, beams.log_probs = tokens.gather(1, chosen), scores.gather(1, chosen).masked_fill(ends.gather(1, chosen), float("-inf"))
    beams.history = history.gather(1, chosen[:, :, None].expand(-1, -1, history.shape[2]))
    num_finished = torch.tensor([len(beams.finished[i]) for i in beams.sentences.tolist()], device=at_limit.device)
    done = at_limit | (num_finished >= k) | ~beams.log_probs.isfinite().any(dim=1)
    return done, origins.gather(1, chosen)


def _hypothesis(tokens: list[int], log_prob: float, length_penalty: float) -> Hypothesis:
    score = log_prob / len(tokens) ** length_penalty
    return Hypothesis(tokens[:-1] if tokens[-1] == EOS_ID else tokens, log_prob, score)
