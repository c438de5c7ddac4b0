"""Compare cached, step-by-step decoding with a full forward pass of the original model."""

import pytest
import torch
from torch import Tensor

from mt.decode.steps import EagerModel
from mt.model.attention import PaddedAttention
from mt.model.state import FIRST_CAPACITY
from mt.model.transformer import Transformer
from tests.model.small import VOCAB, small, sources

pytestmark = pytest.mark.usefixtures("one_thread")


def last_log_probs(model: Transformer, src: Tensor, src_mask: Tensor, tgt: Tensor) -> Tensor:
    """Score the next token after `tgt` [sentences, beams, length] with a full forward pass.

    Returns [sentences, beams, vocab_size].
    """
    beams = tgt.shape[1]
    hidden = model(
        src.repeat_interleave(beams, 0), src_mask.repeat_interleave(beams, 0), tgt.flatten(0, 1)
    )
    return model.project(hidden[:, -1]).log_softmax(dim=-1).unflatten(0, tgt.shape[:2])


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("tie", ["all", "decoder", "none"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward(norm: str, tie: str, activation: str) -> None:
    model = small(norm, tie, activation)
    ready = EagerModel(model)
    src, src_mask = sources(7, 3, 5)
    tgt = torch.randint(0, VOCAB, (3, 2, 6), generator=torch.Generator().manual_seed(3))
    state = ready.initial_state(src, src_mask)
    for t in range(6):
        log_probs = ready.step(tgt[:, :, t], state)
        torch.testing.assert_close(
            log_probs,
            last_log_probs(model, src, src_mask, tgt[:, :, : t + 1]),
            rtol=1e-5,
            atol=1e-5,
        )
    assert state.length == 6


@torch.no_grad()
def test_memory_equals_that_of_the_full_forward() -> None:
    model = small()
    src, src_mask = sources(7, 3, 5)
    memory = (
        EagerModel(model)
        .model.encode_flat(src, PaddedAttention.of(3, src_mask[:, None]))
        .unflatten(0, (7, 3))
        .transpose(0, 1)
    )
    torch.testing.assert_close(
        memory[src_mask], model.encode(src, src_mask)[src_mask], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("beams", "steps"), [(1, 12), (3, 12), (4, FIRST_CAPACITY)])
@torch.no_grad()
def test_cached_steps_equal_the_full_forward_after_reorder_and_keep(beams: int, steps: int) -> None:
    """Decode while beams are reordered at random, and sentences are dropped and change places.

    The first step has one beam. `prefix` is what each hypothesis should consist of. The last
    case needs more cells than the cache has at first.
    """
    model = small()
    ready = EagerModel(model)
    draw = torch.Generator().manual_seed(11)
    src, src_mask = sources(7, 3, 5, 6)
    state = ready.initial_state(src, src_mask)
    sentences = torch.arange(4)
    prefix = torch.empty(4, 1, 0, dtype=torch.int64)
    for step in range(steps):
        tokens = torch.randint(0, VOCAB, prefix.shape[:2], generator=draw)
        prefix = torch.cat([prefix, tokens[:, :, None]], dim=2)
        log_probs = ready.step(tokens, state)
        torch.testing.assert_close(
            log_probs,
            last_log_probs(model, src[sentences], src_mask[sentences], prefix),
            rtol=1e-5,
            atol=1e-5,
        )
        # Most of the time each hypothesis continues itself, so that the trie grows wide.
        alone = step and torch.rand(1, generator=draw) < 0.7
        origins = torch.arange(beams).expand(len(sentences), -1) if alone else None
        if origins is None:
            origins = torch.randint(0, prefix.shape[1], (len(sentences), beams), generator=draw)
        state.reorder(origins)
        prefix = prefix.gather(1, origins[:, :, None].expand(-1, -1, step + 1))
        if step in (2, 5):
            kept = torch.tensor([0, 3, 2] if step == 2 else [2, 1])
            state.keep(kept)
            sentences, prefix = sentences[kept], prefix[kept]
    assert sentences.tolist() == [2, 3]
    if steps == FIRST_CAPACITY and beams > 1:
        assert state.path.shape[2] > FIRST_CAPACITY


@torch.no_grad()
def test_a_cell_that_no_hypothesis_has_any_more_is_taken_anew() -> None:
    """Let both beams always continue the first beam.

    Each step then needs one cell per token, and one more for the alternative token.
    """
    ready = EagerModel(small())
    state = ready.initial_state(*sources(4, 3))
    for _ in range(20):
        ready.step(torch.full((2, 2), 5), state)
        state.reorder(torch.zeros(2, 2, dtype=torch.int64))
    assert state.path.sum(dim=2).tolist() == [[20, 20], [20, 20]]
    assert state.path.shape[2] == 21


@torch.no_grad()
def test_keys_and_values_of_the_source_belong_to_sentences_not_to_beams() -> None:
    ready = EagerModel(small())
    state = ready.initial_state(*sources(7, 3))
    ready.step(torch.full((2, 4), 2), state)
    assert all(
        len(layer.src_keys) == len(layer.src_values) == len(layer.keys) == 2
        for layer in state.layers
    )


@torch.no_grad()
def test_keep_copies_only_sentences_that_change_place() -> None:
    ready = EagerModel(small())
    state = ready.initial_state(*sources(7, 3, 5))
    ready.step(torch.full((3, 2), 2), state)
    before = [layer.keys for layer in state.layers]
    third = before[0][2].clone()
    state.keep(torch.tensor([0, 2]))
    assert all(
        layer.keys.data_ptr() == old.data_ptr()
        for layer, old in zip(state.layers, before, strict=True)
    )
    assert torch.equal(state.layers[0].keys[1], third)


@torch.no_grad()
def test_a_state_without_sentences_is_allowed() -> None:
    ready = EagerModel(small())
    state = ready.initial_state(*sources(7, 3))
    ready.step(torch.full((2, 2), 2), state)
    state.keep(torch.empty(0, dtype=torch.int64))
    assert len(state.path) == len(state.layers[0].keys) == len(state.layers[0].src_keys) == 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.int8, 0.1)])
@torch.no_grad()
def test_other_precisions_are_near_fp32(dtype: torch.dtype, tolerance: float) -> None:
    model = small()
    src, src_mask = sources(7, 3, 5)
    tgt = torch.randint(0, VOCAB, (3, 2, 6), generator=torch.Generator().manual_seed(3))
    results = []
    for ready in (EagerModel(model), EagerModel(model, dtype)):
        state = ready.initial_state(src, src_mask)
        results.append(torch.stack([ready.step(tgt[:, :, t], state).float() for t in range(6)]))
    spread = results[0].std()
    assert 0 < (results[0] - results[1]).abs().max() / spread < tolerance * 4
    assert (results[0] - results[1]).square().mean().sqrt() / spread < tolerance


@torch.no_grad()
def test_in_int8_a_sentence_alone_gives_what_it_gives_in_company() -> None:
    """Expect agreement, unless fp32 rounding between products changes a value's int8 level."""
    ready = EagerModel(small(), torch.int8)
    src, src_mask = sources(7, 7, 7, 7)
    log_probs = ready.step(torch.full((4, 2), 5), ready.initial_state(src, src_mask))
    for i in range(4):
        alone = ready.step(
            torch.full((1, 2), 5), ready.initial_state(src[i : i + 1], src_mask[i : i + 1])
        )
        torch.testing.assert_close(alone[0], log_probs[i], rtol=1e-5, atol=1e-5)
