"""Find the largest micro-batch that fits into memory, for `batching.max_tokens: auto`.

This is tried out with batches of the longest pairs. The size of an update is set by
`train.batch_tokens`, so `max_tokens` only decides how many micro-batches it is split into. This
affects speed and memory, but not what the model learns.
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

SHARE = 0.9  # share of the available memory that training may use
CPU_CEILING = 8192  # number of tokens; larger micro-batches are not faster on a CPU


def with_max_tokens(config: Config, max_tokens: int) -> Config:
    """Return a copy of `config` with the given `batching.max_tokens`."""
    batching = config.batching.model_copy(update={"max_tokens": max_tokens})
    return config.model_copy(update={"batching": batching})


def find_max_tokens(config: Config, prepared: Prepared, compute: Compute, ranks: int = 1) -> int:
    """Return the largest `batching.max_tokens` that trains within `SHARE` of the available memory.

    Only powers of two are tried, up to `train.batch_tokens` divided by the number of ranks. Raises
    `ConfigError` if even a batch of the longest pairs does not fit, and always for a sharded model:
    one rank cannot train it alone, and if one rank ran out of memory, the others would hang.
    """
    longest, total = longest_side(prepared), available_memory(compute.device)
    candidates = list(_candidates(longest, config, compute, ranks))
    if ranks > 1 and config.train.parallel == "fsdp":
        raise ConfigError(
            f"batching.max_tokens: auto does not support train.parallel: fsdp on {ranks} ranks;\n"
            f"give a number: start with {candidates[0]}, which fits the longest pair ({longest} "
            f"tokens), and double it while it fits into memory, up to {candidates[-1]}"
        )
    largest, before = None, _peak_bytes(compute)
    with trial(with_max_tokens(config, candidates[0]), prepared, compute) as trainer:
        for candidate in candidates:
            peak = _train_worst_batch(trainer, candidate, longest)
            if peak is None or peak > before + SHARE * total:
                break
            largest = candidate
            # Do not try a candidate that will not fit: without free memory, the machine may hang.
            if compute.device.type == "cpu" and 2 * (peak - before) > SHARE * total:
                break
    if largest is None:
        raise ConfigError(
            f"batching.max_tokens: auto: a batch of the longest pairs ({longest} tokens) does not "
            f"fit into {total / 2**30:.1f} GiB;\n"
            "try a lower data.filters.max_len, train.gradient_checkpointing, or a smaller model"
        )
    logger.info("batching.max_tokens: auto: %d", largest)
    return largest


def longest_side(prepared: Prepared) -> int:
    """Return the length of the longest training sentence, with its end-of-sentence token."""
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
    """Return the largest half, quarter, ... of `batching.max_tokens` that fits, or None.

    Called after training ran out of memory. The smallest size is tried first, because the process
    may keep the memory that a larger batch has used. The trainer cannot be used afterwards.
    """
    longest, max_tokens = longest_side(trainer.prepared), int(trainer.config.batching.max_tokens)
    smallest = max(longest, trainer.config.data.filters.max_len)
    halves = itertools.takewhile(
        lambda size: size >= smallest, (max_tokens >> i for i in itertools.count(1))
    )
    trainer.optimizer.zero_grad()
    largest = None
    for size in reversed(list(halves)):
        if _train_worst_batch(trainer, size, longest) is None:
            break
        largest = size
    return largest


def _train_worst_batch(trainer: Trainer, max_tokens: int, longest: int) -> int | None:
    """Train two updates on a batch of the longest pairs.

    Returns the peak memory in bytes, or None if memory runs out.
    """
    shape = (max_tokens // longest, longest, longest)
    batch = empty_batch(shape, torch.device("cpu"), packed=trainer.loader.packed)
    try:
        for _ in range(2):
            # The weights are not used, so they may diverge.
            with contextlib.suppress(DivergedError):
                trainer.train_step(Update.from_batches([batch])).read()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        trainer.optimizer.zero_grad()
        return None
    return _peak_bytes(trainer.compute)


def _peak_bytes(compute: Compute) -> int:
    """Return the peak memory so far: allocated on the GPU, or used by this process on a CPU."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_reserved(compute.device)
    return peak_process_memory()
