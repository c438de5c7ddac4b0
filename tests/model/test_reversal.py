"""Check that a small Transformer learns to reverse digit strings, even ones it never saw."""

import random
from collections.abc import Iterator

import pytest
import torch

from mt.config import ModelConfig, OptimConfig
from mt.data.batch import collate, pad_rows
from mt.data.tokenizer import EOS_ID, PAD_ID
from mt.decode.search import greedy_search, max_output_lens
from mt.decode.steps import EagerModel
from mt.model.transformer import Transformer, build_model
from mt.train.objective import loss_sums
from mt.train.optimizer import WeightAverage, build_optimizer, learning_rate

FIRST_DIGIT, VOCAB = 4, 14
STEPS, ROWS, SEED = 700, 64, 1
OPTIM = OptimConfig(lr=3e-3, warmup_steps=100)
MODEL = ModelConfig(
    d_model=64, d_ff=256, num_heads=4, encoder_layers=2, decoder_layers=2, norm="pre", dropout=0.0
)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Use one thread. Two would wait for each other if a second test worker shared two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def strings(rng: random.Random) -> Iterator[list[int]]:
    """Yield the ids of random strings of 1 to 20 digits. All lengths are equally likely."""
    while True:
        yield [rng.randrange(FIRST_DIGIT, VOCAB) for _ in range(rng.randint(1, 20))]


def train(unseen: set[tuple[int, ...]], seed: int) -> Transformer:
    """Train a model on strings other than `unseen`, and return it with averaged weights."""
    seen = (s for s in strings(random.Random(seed + 1)) if tuple(s) not in unseen)
    model = build_model(MODEL, VOCAB, VOCAB, seed)
    optimizer = build_optimizer(model, OPTIM, torch.device("cpu"))
    average = WeightAverage(model, decay=0.98)
    for step in range(1, STEPS + 1):
        batch = collate([(s, s[::-1]) for s in (next(seen) for _ in range(ROWS))])
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = learning_rate(
            step, OPTIM
        )
        (loss_sums(model, batch, 0.0).smoothed / batch.num_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(average.weights[name])
    return model.eval()


@pytest.mark.usefixtures("_one_thread")
def test_a_small_transformer_learns_to_reverse_unseen_strings_of_digits() -> None:
    drawn = strings(random.Random(SEED))
    unseen: dict[
        tuple[int, ...], None
    ] = {}  # at least 2 digits, because otherwise all ten strings of 1 digit would be held out
    while len(unseen) < 500:
        if len(string := next(drawn)) > 1:
            unseen[tuple(string)] = None
    model = train(set(unseen), SEED)
    src = pad_rows([list(string) for string in unseen], suffix=EOS_ID)
    src_mask = src != PAD_ID
    found = greedy_search(EagerModel(model), src, src_mask, max_output_lens(src_mask, 1.0, 5))
    right = sum(
        hyp.tokens == list(reversed(string)) for string, [hyp] in zip(unseen, found, strict=True)
    )
    assert right >= 495, f"{right} of 500 reversed"
