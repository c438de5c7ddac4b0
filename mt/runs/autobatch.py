"""`batching.max_tokens: auto`: the largest micro-batch that memory holds, found by training on the
worst one there can be.

`train.batch_tokens` fixes the size of an update, so a larger micro-batch only means fewer of them:
speed and memory change, learning not.
"""

import contextlib
import itertools
import logging
from collections.abc import Iterator

import numpy as np
import torch

from mt.config import Config
from mt.data.batch import empty_batch
from mt.data.order import Update
from mt.data.prepare import Prepared
from mt.errors import ConfigError, DivergedError
from mt.runtime.device import Compute
from mt.runtime.memory import available_memory, is_out_of_memory, peak_process_memory
from mt.train.trainer import Trainer, trial

logger = logging.getLogger(__name__)

SHARE = 0.9  # of the memory that a training may take
CPU_CEILING = 8192  # tokens; on a CPU matrix products are as fast as they get well below


def with_max_tokens(config: Config, max_tokens: int) -> Config:
    """`config` with the number in the place of `auto`."""
    return config.model_copy(
        update={"batching": config.batching.model_copy(update={"max_tokens": max_tokens})}
    )


def find_max_tokens(config: Config, prepared: Prepared, compute: Compute, ranks: int = 1) -> int:
    """The largest power of two, at most a rank's part of `train.batch_tokens`, whose worst
    micro-batch trains in `SHARE` of the memory.

    Raises `ConfigError` where not even a batch of the longest pairs fits, and where ranks share out
    the model: one cannot try alone, and one that runs out of memory leaves the others waiting.
    """
    longest, total = longest_side(prepared), available_memory(compute.device)
    candidates = list(_candidates(longest, config, compute, ranks))
    if ranks > 1 and config.train.parallel == "fsdp":
        raise ConfigError(
            f"batching.max_tokens: auto cannot be tried by {ranks} ranks that share out the model "
            f"(train.parallel: fsdp); give a number: {candidates[0]} to begin with, which holds "
            f"the longest pair ({longest} tokens), then twice as many while memory holds, up to "
            f"{candidates[-1]}"
        )
    found, base = None, _taken(compute)
    with trial(with_max_tokens(config, candidates[0]), prepared, compute) as trainer:
        for candidate in candidates:
            taken = _try(trainer, candidate, longest)
            if taken is None or taken > base + SHARE * total:
                break
            found = candidate
            if compute.device.type == "cpu" and 2 * (taken - base) > SHARE * total:
                # the next would not fit, and a CPU out of memory takes the whole machine with it
                break
    if found is None:
        raise ConfigError(
            f"batching.max_tokens: auto: {total / 2**30:.1f} GiB do not hold a batch of the longest pairs ({longest} tokens); "
            "try a lower data.filters.max_len, train.gradient_checkpointing, or a smaller model"
        )
    logger.info("batching.max_tokens: auto: %d", found)
    return found


def longest_side(prepared: Prepared) -> int:
    """The longest sentence of the training data, end of sentence included."""
    cache, step = prepared.train, 1 << 20
    parts = (
        cache.lengths(np.arange(start, min(start + step, len(cache))))
        for start in range(0, len(cache), step)
    )
    return max(int(max(src.max(), tgt.max())) for src, tgt in parts) + 1


def _candidates(longest: int, config: Config, compute: Compute, ranks: int) -> Iterator[int]:
    assert config.train.batch_tokens is not None
    ceiling = config.train.batch_tokens // ranks
    if compute.device.type == "cpu":
        ceiling = min(ceiling, CPU_CEILING)
    candidate = 1 << max(8, (longest - 1).bit_length())
    yield candidate
    while (candidate := candidate * 2) <= ceiling:
        yield candidate


def smaller_that_fits(trainer: Trainer) -> int | None:
    """What to train with where memory ran out: half, a quarter, ... of `batching.max_tokens`, the
    largest whose worst batch trains here.

    The smallest is tried first: what a batch takes from the system, the next one does not get back.
    The trainer is of no use afterwards.
    """
    longest, max_tokens = longest_side(trainer.prepared), int(trainer.config.batching.max_tokens)
    smallest = max(longest, trainer.config.data.filters.max_len)
    halves = itertools.takewhile(
        lambda size: size >= smallest, (max_tokens >> i for i in itertools.count(1))
    )
    trainer.optimizer.zero_grad()
    found = None
    for size in reversed(list(halves)):
        if _try(trainer, size, longest) is None:
            break
        found = size
    return found


def _try(trainer: Trainer, max_tokens: int, longest: int) -> int | None:
    """Bytes that two updates of the worst batch take at their peak; None where memory runs out."""
    batch = empty_batch(
        (max_tokens // longest, longest, longest), torch.device("cpu"), packed=trainer.loader.packed
    )
    try:
        for _ in range(2):
            with contextlib.suppress(
                DivergedError
            ):  # what becomes of these weights is of no interest
                trainer.train_step(Update.of([batch])).read()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        trainer.optimizer.zero_grad()
        return None
    return _taken(trainer.compute)


def _taken(compute: Compute) -> int:
    """Peak bytes so far: of the GPU's allocator, or of the process."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_reserved(compute.device)
    return peak_process_memory()
