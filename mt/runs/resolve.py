"""Determine, once at the start of a run, all settings that its configuration leaves open.

These are the initial model, the precision, the threads, and sizes that are `auto`. All ranks get
the same values. Checkpoints contain the precision and the threads, so a resumed run keeps them.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mt.artifacts import ModelFolder, RunFolder, find_model
from mt.config import AUTO, Config, ResolvedRun, flatten, resume_policy, with_defaults_of
from mt.data.prepare import Prepared, prepare
from mt.data.store import LengthQuantiles
from mt.errors import ConfigError, join_reasons
from mt.runs.autobatch import find_max_tokens, with_max_tokens
from mt.runtime.device import PRECISION_NAMES, Compute, has_native_bf16, set_up_compute
from mt.runtime.environment import num_cores
from mt.runtime.world import World

logger = logging.getLogger(__name__)
# Model settings that a run does not copy from its initial model.
NOT_INHERITED = {
    "preset",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "embedding_dropout",
}


def final_settings(config: Config, run: RunFolder, overwrite: bool) -> tuple[Config, list[str]]:
    """Return (settings, messages for the user) for a run that starts or resumes in a folder.

    Raises `ConfigError` if the folder is not a run folder, or if it contains a run whose settings
    must not change in this way.
    """
    before = None if overwrite else run.settings()
    if before is not None:
        config = with_defaults_of(config, before.format)
    messages: list[str] = []
    if before is not None and before.train.init_from is not None and run.steps():
        # The initial model may have been changed or deleted since then.
        config = _with_model_of(config, before, before.train.init_from)
    else:
        config, messages = with_initial_model(config)
    run.check_written_by_mt(overwrite)
    if before is not None:
        changes = _changed_settings(config, before, run)
        messages += [f"changed since the last start: {change}" for change in changes]
    return config, messages


def _changed_settings(config: Config, before: Config, run: RunFolder) -> list[str]:
    """Return the settings that have changed, one line each.

    Raises `ConfigError` if a setting has changed that must stay the same.
    """
    then, now = flatten(before), flatten(config)
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    changes = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in changed}
    refused = [key for key in changed if resume_policy(Config, key) == "fixed"]
    if refused:
        raise ConfigError(
            join_reasons(
                f"{run}: this run was started with other settings:",
                [changes[key] for key in refused],
            )
            + "\nundo the changes, choose another run_dir, or start from scratch with --overwrite"
        )
    # The precision and the threads may not be known here; `_log_changes` reports them.
    return [changes[key] for key in changed if key not in ("precision", "threads")]


def with_initial_model(config: Config) -> tuple[Config, list[str]]:
    """Return `config` with the sizes and tokenizer of the model in `train.init_from`, and messages.

    There is one message for each setting that changes. If `train.init_from` is a run folder, it is
    replaced by the checkpoint that would be loaded now.
    Raises `CheckpointError` if it is not a model.
    """
    if config.train.init_from is None:
        return config, []
    folder = find_model(Path(config.train.init_from))
    inherited = _with_model_of(config, folder.config(), str(folder))
    before = config.model.model_dump()
    changes = [
        f"model.{key}: {value}, as in {folder} (not {before[key]})"
        for key, value in inherited.model.model_dump().items()
        if key not in NOT_INHERITED and before[key] != value
    ]
    return inherited, changes


def _with_model_of(config: Config, other: Config, init_from: str | None) -> Config:
    """Return `config` with the sizes and tokenizer of `other`, and the given `train.init_from`."""
    sizes = {key: v for key, v in other.model.model_dump().items() if key not in NOT_INHERITED}
    model = config.model.model_copy(update={**sizes, "preset": other.model.preset})
    train = config.train.model_copy(update={"init_from": init_from})
    return config.model_copy(update={"model": model, "tokenizer": other.tokenizer, "train": train})


def resolve(
    config: Config, run: RunFolder, checkpoint: ModelFolder | None, world: World
) -> tuple[ResolvedRun, Prepared, Compute]:
    """Determine all open settings, prepare the data, and set up this rank's device.

    `checkpoint` is the checkpoint to resume from, or None for a new run.
    """
    resolved, compute = start_computing(config, checkpoint, world)
    prepared = prepare(config, world, None if checkpoint is None else checkpoint.tokenizer)
    resolved = _with_batch_size(resolved, prepared, compute, checkpoint, world)
    resolved = with_decode_limits(resolved, prepared.train.length_quantiles)
    place = None if checkpoint is None else checkpoint.path
    return ResolvedRun(run.path, resolved, place), prepared, compute


def with_decode_limits(config: Config, seen: LengthQuantiles) -> Config:
    """Return `config` with `decode.max_src_len` and `decode.max_sentences` set.

    If they are `auto`, they are derived from the lengths in the training data.
    """
    limits = {"max_src_len": max(8, seen.src["0.9999"]), "max_sentences": seen.sentences["0.99"]}
    update = {name: n for name, n in limits.items() if getattr(config.decode, name) == AUTO}
    return config.model_copy(update={"decode": config.decode.model_copy(update=update)})


def _with_batch_size(
    config: Config,
    prepared: Prepared,
    compute: Compute,
    checkpoint: ModelFolder | None,
    world: World,
) -> Config:
    """Return `config` with `batching.max_tokens` set.

    If it is `auto`, a resumed run keeps its number, and a new run tries out sizes on rank 0.
    """
    if config.batching.max_tokens != AUTO:
        return config
    if checkpoint is not None:
        return with_max_tokens(config, checkpoint.training_state()["max_tokens"])
    return with_max_tokens(
        config,
        world.broadcast_from_rank0(lambda: find_max_tokens(config, prepared, compute, world.size)),
    )


def start_computing(
    config: Config, resumed: ModelFolder | None, world: World
) -> tuple[Config, Compute]:
    """Set up this rank's device. Returns (`config` with precision and threads filled in, device).

    If the user has left precision or threads open (`precision: auto`, no `threads`), they are taken
    from the checkpoint `resumed`, or chosen by rank 0. Raises `ConfigError` (`RankError` on other
    ranks) if the device of a rank does not support the precision.
    """
    chosen = world.broadcast_from_rank0(lambda: _decide(config, resumed, world))
    computes: list[Compute] = []

    def start(ranks: Sequence[int]) -> list[bool]:
        """Set up this rank's device. Returns, for `ranks` (only this one), whether it is fast."""
        place = world.device_for_rank(config.device)
        try:
            compute = set_up_compute(
                place,
                chosen["precision"],
                chosen["threads_per_rank"],
                deterministic=config.train.deterministic,
            )
        except ConfigError as error:
            raise ConfigError(f"{error}{chosen['hint']}") from error
        computes.append(compute)
        return [compute.dtype != torch.bfloat16 or has_native_bf16(compute.device) for _ in ranks]

    is_fast = world.map_sharded(start, range(world.size))
    slow = [str(rank) for rank, fast in enumerate(is_fast) if not fast]
    if slow and is_fast[0]:  # if rank 0 is slow, it has already warned about itself
        logger.warning(
            "precision: bf16 has no hardware support on rank %s, which slows down all ranks; "
            "fp32 would be faster",
            ", ".join(slow),
        )
    update = {"precision": chosen["precision"], "threads": chosen["threads"]}
    return config.model_copy(update=update), computes[0]


def _decide(config: Config, resumed: ModelFolder | None, world: World) -> dict[str, Any]:
    """Choose the precision and the number of threads (per machine and per rank).

    Logs a message if they differ from those of the checkpoint `resumed`.
    """
    before = {} if resumed is None else resumed.training_state()
    precision: str = config.precision
    hint = ""
    if precision == AUTO and before.get("precision"):
        precision = before["precision"]
        hint = f"\nthis run was trained in {precision} so far; set precision to change that"
    if precision == AUTO:
        compute = set_up_compute(
            world.device_for_rank(config.device), precision, None, for_training=True
        )
        precision = PRECISION_NAMES[compute.dtype]
    threads = config.threads or before.get("threads") or torch.get_num_threads() * world.local_size
    _log_changes(before, {"precision": precision, "threads": threads})
    if config.threads is None and threads == before.get("threads") and threads > num_cores():
        logger.warning(
            "threads: %d as before, but this machine has only %d cores; threads=%d is faster here, "
            "but changes rounding, so results are not bit-identical",
            threads,
            num_cores(),
            num_cores(),
        )
    return {
        "precision": precision,
        "threads": threads,
        "threads_per_rank": world.threads_per_rank(threads),
        "hint": hint,
    }


def _log_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name, value) != value:  # old checkpoints do not contain these
            logger.info("changed since the last start: %s: %s -> %s", name, before[name], value)
