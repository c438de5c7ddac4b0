"""Compare beam search with exhaustive search, with plain Python rules, and across batches."""

import itertools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mt.config import ModelConfig
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from mt.decode import search
from mt.decode.search import Hypothesis, SearchConfig, best_continuations, max_output_lens
from mt.decode.steps import EagerModel
from mt.model.state import DecoderState
from mt.model.transformer import Transformer, build_model

VOCAB = 6


pytestmark = pytest.mark.usefixtures("one_thread")


def random_model(seed: int, vocab: int = VOCAB, sharpness: float = 2.0) -> Transformer:
    """Build an untrained model. Its large weights make sentences differ, and some of them end."""
    config = ModelConfig(
        d_model=16,
        d_ff=32,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=2,
        norm="pre",
        tie_embeddings="none",
    )
    model = build_model(config, vocab, vocab, seed)
    model.output_weight.data *= sharpness
    return model.eval()


def sources(seed: int, lengths: list[int], vocab: int = VOCAB) -> tuple[Tensor, Tensor]:
    """Return padded random sentences. `lengths` includes the end-of-sentence token."""
    draw = torch.Generator().manual_seed(seed)
    src = torch.full((len(lengths), max(lengths)), PAD_ID)
    for row, length in zip(src, lengths, strict=True):
        row[: length - 1] = torch.randint(4, vocab, (length - 1,), generator=draw)
        row[length - 1] = EOS_ID
    return src, src != PAD_ID


def greedy_search(model: Transformer, *args: Any) -> list[list[Hypothesis]]:
    return search.greedy_search(EagerModel(model), *args)


def beam_search(model: Transformer, *args: Any) -> list[list[Hypothesis]]:
    return search.beam_search(EagerModel(model), *args)


@torch.no_grad()
def log_prob(model: Transformer, src: Tensor, tokens: list[int]) -> float:
    """Compute the log-probability of `tokens` for one unpadded source with a full forward pass."""
    tgt_in = torch.tensor([[BOS_ID, *tokens[:-1]]])
    log_probs = model.project(model(src[None], None, tgt_in))[0].double().log_softmax(-1)
    return float(sum(log_probs[t, token] for t, token in enumerate(tokens)))


def with_end(hyp: Hypothesis, max_len: int) -> list[int]:
    """Return a hypothesis's tokens, with the end-of-sentence token unless the limit cut it off.

    A hypothesis with `max_len` tokens was cut. A shorter hypothesis has ended.
    """
    return hyp.tokens if len(hyp.tokens) == max_len else [*hyp.tokens, EOS_ID]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [hyp.tokens for hyp in found] == [hyp.tokens for hyp in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.log_prob == pytest.approx(theirs.log_prob, abs=1e-4)
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


# --- exhaustive search


@torch.no_grad()
def every_hypothesis(
    model: Transformer, src: Tensor, max_len: int, length_penalty: float
) -> list[Hypothesis]:
    """Return all hypotheses that end within `max_len` tokens or are cut there, best first."""
    prefixes = torch.tensor(list(itertools.product(range(VOCAB), repeat=max_len)))
    tgt_in = torch.cat([torch.full((len(prefixes), 1), BOS_ID), prefixes[:, :-1]], dim=1)
    memory = src.expand(len(prefixes), -1)
    log_probs = (
        model.project(model(memory, None, tgt_in))
        .double()
        .log_softmax(-1)
        .gather(2, prefixes[:, :, None])[:, :, 0]
    )
    totals: dict[tuple[int, ...], float] = {}
    for tokens, steps in zip(prefixes.tolist(), log_probs.tolist(), strict=True):
        length = tokens.index(EOS_ID) + 1 if EOS_ID in tokens else max_len
        totals[tuple(tokens[:length])] = sum(steps[:length])
    found = [
        Hypothesis(list(t[:-1] if t[-1] == EOS_ID else t), p, p / len(t) ** length_penalty)
        for t, p in totals.items()
    ]
    return sorted(found, key=lambda hyp: -hyp.score)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_beam_that_holds_every_prefix_is_exhaustive_search(
    seed: int, length_penalty: float
) -> None:
    model, max_len = random_model(seed), 4
    src, src_mask = sources(seed, [4, 4])
    every = 5**3 * VOCAB  # enough for all continuations of unended prefixes in the last step
    config = SearchConfig(beam_size=every, nbest=every, length_penalty=length_penalty)
    found = beam_search(model, src, src_mask, torch.full((2,), max_len), config)
    for sentence, hyps in enumerate(found):
        exhaustive = every_hypothesis(model, src[sentence], max_len, length_penalty)
        assert len(exhaustive) == 1 + 5 + 25 + every
        assert_same(hyps[:20], exhaustive[:20])
        expected = sorted((hyp.score for hyp in exhaustive), reverse=True)[:every]
        assert [hyp.score for hyp in hyps] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("max_len", [1, 2, 3])
def test_a_wide_beam_finds_the_best_under_other_limits_too(max_len: int) -> None:
    for seed in range(5):
        model = random_model(seed)
        src, src_mask = sources(seed, [5])
        [[best]] = beam_search(
            model, src, src_mask, torch.tensor([max_len]), SearchConfig(beam_size=200)
        )
        assert_same([best], every_hypothesis(model, src[0], max_len, 1.0)[:1])


def test_a_wide_beam_finds_what_greedy_search_misses() -> None:
    """Check this, because otherwise the comparison with exhaustive search would show little."""
    missed = 0
    for seed in range(40):
        model = random_model(seed)
        src, src_mask = sources(seed, [4])
        limit = torch.tensor([4])
        [[greedy]], [[best]] = (
            greedy_search(model, src, src_mask, limit),
            beam_search(model, src, src_mask, limit, SearchConfig(200)),
        )
        assert best.score >= greedy.score - 1e-6
        missed += best.tokens != greedy.tokens
    assert missed >= 3


# --- the rules in plain Python


def plain_beam_search(
    next_log_probs: Callable[[list[int]], list[float]],
    beam_size: int,
    max_len: int,
    length_penalty: float,
    nbest: int,
) -> list[Hypothesis]:
    """Apply the rules of `mt.decode.search` to one sentence, in plain Python.

    `next_log_probs` returns the log-probabilities of the next token after a prefix.
    """
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[Hypothesis] = []
    while True:
        candidates = [
            (total + step, [*prefix, token])
            for total, prefix in live
            for token, step in enumerate(next_log_probs(prefix))
        ]  # fmt: skip
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beam_size]
        at_limit = len(candidates[0][1]) == max_len
        for total, tokens in candidates[:beam_size]:
            if tokens[-1] == EOS_ID or at_limit:
                text = tokens[:-1] if tokens[-1] == EOS_ID else tokens
                finished.append(Hypothesis(text, total, total / len(tokens) ** length_penalty))
        live = [c for c in candidates if c[1][-1] != EOS_ID][:beam_size]
        if at_limit or len(finished) >= beam_size:
            return sorted(finished, key=lambda hyp: -hyp.score)[:nbest]


def next_by_full_forward(model: Transformer, src: Tensor) -> Callable[[list[int]], list[float]]:
    @torch.no_grad()
    def next_log_probs(prefix: list[int]) -> list[float]:
        return (
            model.project(model(src[None], None, torch.tensor([[BOS_ID, *prefix]])))[0, -1]
            .log_softmax(-1)
            .tolist()
        )

    return next_log_probs


LENGTHS = [3, 9, 2, 6, 1, 7]
LIMITS = [6, 9, 1, 12, 7, 3]


@pytest.mark.parametrize("beam_size", [2, 4, 5])
@pytest.mark.parametrize(("seed", "length_penalty"), [(1, 1.0), (2, 0.6), (3, 0.0)])
def test_beam_search_follows_its_rules_in_plain_python(
    beam_size: int, seed: int, length_penalty: float
) -> None:
    model = random_model(seed, vocab=9)
    src, src_mask = sources(seed, LENGTHS, vocab=9)
    config = SearchConfig(beam_size, beam_size, length_penalty)
    found = beam_search(model, src, src_mask, torch.tensor(LIMITS), config)
    for i, hyps in enumerate(found):
        expected = plain_beam_search(
            next_by_full_forward(model, src[i, src_mask[i]]),
            beam_size,
            LIMITS[i],
            length_penalty,
            beam_size,
        )
        assert_same(hyps, expected)


class Table:
    """A model that looks up the probabilities for each prefix. Its state is the prefixes."""

    def __init__(self, table: dict[tuple[int, ...], dict[int, float]], vocab: int) -> None:
        self.table, self.vocab, self.prefixes = table, vocab, list[list[tuple[int, ...]]]()

    def initial_state(self, src: Tensor, src_mask: Tensor) -> "Table":
        self.prefixes = [[()] for _ in src]
        return self

    def step(self, tokens: Tensor, state: "Table") -> Tensor:
        pairs = zip(self.prefixes, tokens.tolist(), strict=True)
        self.prefixes = [[(*p, t) for p, t in zip(beams, own, strict=True)] for beams, own in pairs]
        rows = [[self.table.get(p[1:], {EOS_ID: 1.0}) for p in beams] for beams in self.prefixes]
        return (
            torch.tensor(
                [[[row.get(i, 1e-9) for i in range(self.vocab)] for row in beams] for beams in rows]
            )
            .log()
            .log_softmax(dim=-1)
        )

    def reorder(self, hyp_index: Tensor) -> None:
        self.prefixes = [
            [beams[i] for i in own]
            for beams, own in zip(self.prefixes, hyp_index.tolist(), strict=True)
        ]

    def keep(self, sentence_index: Tensor) -> None:
        self.prefixes = [self.prefixes[i] for i in sentence_index.tolist()]


A, B = 4, 5


def search_table(
    table: dict[tuple[int, ...], dict[int, float]], config: SearchConfig, max_len: int = 5
) -> list[Hypothesis]:
    one = torch.tensor([[EOS_ID]])
    return search.beam_search(Table(table, 6), one, one != PAD_ID, torch.tensor([max_len]), config)[
        0
    ]


def test_an_end_outside_the_first_beams_is_passed_over() -> None:
    """Rank the end-of-sentence token third of four candidates: it must not finish a hypothesis."""
    table = {
        (): {A: 0.4, B: 0.35, EOS_ID: 0.25},
        (A,): {EOS_ID: 0.6, A: 0.4},
        (B,): {EOS_ID: 0.6, A: 0.4},
    }
    found = search_table(table, SearchConfig(2, 2, 0.0))
    assert [hyp.tokens for hyp in found] == [[A], [B]]


def test_the_next_best_continuation_takes_the_place_of_one_that_ended() -> None:
    """Let one hypothesis end, so that A and B both continue. Otherwise B A would not be found."""
    table = {
        (): {EOS_ID: 0.4, A: 0.35, B: 0.25},
        (A,): {A: 0.1, EOS_ID: 0.9},
        (B,): {A: 1.0},
        (A, A): {EOS_ID: 1.0},
    }
    found = search_table(table, SearchConfig(3, 3, 0.0))
    assert [hyp.tokens for hyp in found] == [[], [A], [B, A]]


def test_a_sentence_stops_at_beam_size_finished() -> None:
    """Stop at two finished hypotheses, although a live beam would have scored better."""
    table = {(): {EOS_ID: 0.4, A: 0.6}, (A,): {EOS_ID: 0.4, A: 0.6}, (A, A): {EOS_ID: 1.0}}
    found = search_table(table, SearchConfig(2, 2, 1.0))
    assert {tuple(hyp.tokens) for hyp in found} == {(), (A,)}


def test_at_the_limit_a_hypothesis_is_taken_as_it_is() -> None:
    table = {(): {A: 1.0}, (A,): {A: 1.0}, (A, A): {A: 0.8, B: 0.2}}
    [first, second] = search_table(table, SearchConfig(2, 2, 1.0), max_len=3)
    assert (first.tokens, second.tokens) == ([A, A, A], [A, A, B])
    assert first.log_prob == pytest.approx(torch.tensor(0.8).log().item(), abs=1e-5)
    assert first.score == pytest.approx(first.log_prob / 3)


# --- greedy search


@pytest.mark.parametrize("seed", range(6))
def test_a_beam_of_one_is_greedy_search(seed: int) -> None:
    model = random_model(seed, vocab=9)
    src, src_mask = sources(seed, LENGTHS, vocab=9)
    for length_penalty in (0.0, 1.0):
        greedy = greedy_search(model, src, src_mask, torch.tensor(LIMITS), length_penalty)
        beam = beam_search(
            model, src, src_mask, torch.tensor(LIMITS), SearchConfig(1, 1, length_penalty)
        )
        for i in range(len(src)):
            assert_same(greedy[i], beam[i])


@pytest.mark.parametrize("seed", range(4))
def test_greedy_search_takes_the_most_probable_token_each_time(seed: int) -> None:
    model = random_model(seed, vocab=9)
    src, src_mask = sources(seed, LENGTHS, vocab=9)
    found = greedy_search(model, src, src_mask, torch.tensor(LIMITS))
    for i, [hyp] in enumerate(found):
        next_log_probs, tokens = next_by_full_forward(model, src[i, src_mask[i]]), list[int]()
        while len(tokens) < LIMITS[i] and EOS_ID not in tokens:
            row = next_log_probs(tokens)
            tokens.append(row.index(max(row)))
        assert hyp.tokens == [token for token in tokens if token != EOS_ID]


# --- batches, scores, limits


def searches() -> list[Callable[[Transformer, Tensor, Tensor, Tensor], list[list[Hypothesis]]]]:
    return [greedy_search, lambda *args: beam_search(*args, SearchConfig(4, 4))]


@pytest.mark.parametrize("search", searches(), ids=["greedy", "beam"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_neighbours_in_the_batch_and_their_order_make_no_difference(
    search: Callable, seed: int
) -> None:
    model = random_model(seed, vocab=9)
    src, src_mask = sources(seed, LENGTHS, vocab=9)
    limits = torch.tensor(LIMITS)
    together = search(model, src, src_mask, limits)
    for i in range(len(src)):
        [alone] = search(
            model, src[i : i + 1, src_mask[i]], src_mask[i : i + 1, src_mask[i]], limits[i : i + 1]
        )
        assert_same(together[i], alone)
    order = torch.randperm(len(src), generator=torch.Generator().manual_seed(seed))
    for i, hyps in zip(
        order.tolist(), search(model, src[order], src_mask[order], limits[order]), strict=True
    ):
        assert_same(hyps, together[i])


@pytest.mark.parametrize("search", searches(), ids=["greedy", "beam"])
def test_scores_are_the_full_forwards_log_probabilities_over_length(search: Callable) -> None:
    for seed in range(4):
        model = random_model(seed, vocab=9)
        src, src_mask = sources(seed, LENGTHS, vocab=9)
        for i, hyps in enumerate(search(model, src, src_mask, torch.tensor(LIMITS))):
            for hyp in hyps:
                tokens = with_end(hyp, LIMITS[i])
                assert EOS_ID not in hyp.tokens
                expected = log_prob(model, src[i, src_mask[i]], tokens)
                assert hyp.log_prob == pytest.approx(expected, abs=1e-4)
                assert hyp.score == pytest.approx(expected / len(tokens), abs=1e-4)


@pytest.mark.parametrize("search", searches(), ids=["greedy", "beam"])
def test_each_sentence_has_its_own_length_limit(search: Callable) -> None:
    """Make the end-of-sentence token impossible: every output must have the maximum length."""
    model = random_model(1, vocab=9)
    src, src_mask = sources(1, LENGTHS, vocab=9)
    real = EagerModel.step

    def endless(self: EagerModel, tokens: Tensor, state: DecoderState) -> Tensor:
        logits = real(self, tokens, state)
        logits[..., EOS_ID] = -1e9
        return logits

    with patch.object(EagerModel, "step", endless):
        found = search(model, src, src_mask, torch.tensor(LIMITS))
    assert [{len(hyp.tokens) for hyp in hyps} for hyps in found] == [{limit} for limit in LIMITS]


@pytest.mark.parametrize("vocab_size", [1, 6, 13, 60, 4000, 4001])
@pytest.mark.parametrize(("beams", "count"), [(1, 2), (1, 10), (5, 10), (3, 200)])
def test_the_best_continuations_are_those_of_sorting_all(
    vocab_size: int, beams: int, count: int
) -> None:
    draw = torch.Generator().manual_seed(1)
    following = (torch.randn(3, beams, vocab_size, generator=draw) * 3).log_softmax(-1)
    log_probs = -torch.rand(3, beams, generator=draw) * 4
    log_probs[1, -1] = float("-inf")
    scores, origins, tokens = best_continuations(following, log_probs, count)
    totals = (following + log_probs[:, :, None]).flatten(1)
    expected = totals.sort(dim=1, descending=True).values[:, :count]
    assert torch.equal(scores, expected)
    assert torch.equal(totals.gather(1, origins * vocab_size + tokens), scores)
    picked = [
        set(zip(o, t, strict=True)) for o, t in zip(origins.tolist(), tokens.tolist(), strict=True)
    ]
    assert [len(each) for each in picked] == [
        min(count, beams * vocab_size)
    ] * 3  # no continuation occurs twice


def test_nbest_lists_are_sorted_distinct_and_as_long_as_asked() -> None:
    model = random_model(5, vocab=9)
    src, src_mask = sources(5, LENGTHS, vocab=9)
    limits = torch.tensor([6, 9, 5, 12, 7, 4])
    five = beam_search(model, src, src_mask, limits, SearchConfig(5, 5))
    two = beam_search(model, src, src_mask, limits, SearchConfig(5, 2))
    for all_five, best_two in zip(five, two, strict=True):
        assert len(all_five) == len({tuple(hyp.tokens) for hyp in all_five}) == 5
        assert [hyp.score for hyp in all_five] == sorted(
            (hyp.score for hyp in all_five), reverse=True
        )
        assert all_five[:2] == best_two


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(1.2, 10, [13, 12, 11]), (0.0, 3, [3, 3, 3]), (2.0, 1, [7, 5, 3])]
)
def test_length_limits_come_from_each_sentences_own_length(
    a: float, b: int, expected: list[int]
) -> None:
    _, src_mask = sources(1, [3, 2, 1])
    assert max_output_lens(src_mask, a, b).tolist() == expected


def test_length_limits_are_whole_numbers_where_the_product_is() -> None:
    src_mask = torch.arange(500) < torch.arange(1, 501)[:, None]
    assert max_output_lens(src_mask, 1.2, 10).tolist() == [6 * n // 5 + 10 for n in range(1, 501)]
