"""Everything about a run that is decided once, at its start: settings, initial model, precision,
threads, sizes.

Precision and threads are recorded in checkpoints, so that a resume continues with them; all of it
is the same on every rank.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mt.artifacts import ModelFolder, RunFolder, find_model
from mt.config import AUTO, Config, ResolvedRun, flatten, resume_policy, with_defaults_of
from mt.data.prepare import Prepared, prepare
from mt.data.store import Lengths
from mt.errors import ConfigError, listed
from mt.runs.autobatch import find_max_tokens, with_max_tokens
from mt.runtime.device import NAMES, Compute, has_native_bf16, set_up_compute
from mt.runtime.environment import num_cores
from mt.runtime.world import World

logger = logging.getLogger(__name__)
# Of a run, whatever its model was trained with.
OWN = {"preset", "dropout", "attention_dropout", "activation_dropout", "embedding_dropout"}


def settle(config: Config, run: RunFolder, overwrite: bool) -> tuple[Config, list[str]]:
    """The settings of a run that begins or continues in a folder, and what is to be said about
    them.

    Raises `ConfigError` if the folder is no run's, or has a run with other settings.
    """
    before = None if overwrite else run.settings()
    if before is not None:
        config = with_defaults_of(config, before.format)
    messages: list[str] = []
    if before is not None and before.train.init_from is not None and run.steps():
        config = as_begun(config, before)
    else:
        config, messages = with_initial_model(config)
    run.check_written_by_mt(overwrite)
    if before is not None:
        changes = _changed_settings(config, before, run)
        messages += [f"changed since the last start: {change}" for change in changes]
    return config, messages


def _changed_settings(config: Config, before: Config, run: RunFolder) -> list[str]:
    """Settings that have changed and may. Raises `ConfigError` if any has changed that may not."""
    then, now = flatten(before), flatten(config)
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    changes = {key: f"{key}: {then.get(key)} -> {now.get(key)}" for key in changed}
    refused = [key for key in changed if resume_policy(Config, key) == "fixed"]
    if refused:
        raise ConfigError(
            listed(
                f"{run}: this run was started with other settings:",
                [changes[key] for key in refused],
            )
            + "\nput them back, choose another run_dir, or start anew with --overwrite"
        )
    told = [key for key in changed if key not in ("precision", "threads")]  # see `_tell_changes`
    return [changes[key] for key in told]


def with_initial_model(config: Config) -> tuple[Config, list[str]]:
    """`config` with the sizes and the tokenizer of the model that `train.init_from` names, and what
    that changes.

    Of a run folder, `train.init_from` becomes the checkpoint that is meant now. Raises
    `CheckpointError` where there is no such model.
    """
    if config.train.init_from is None:
        return config, []
    folder = find_model(Path(config.train.init_from))
    taken = _taking_over(config, folder.config(), str(folder))
    ours = config.model.model_dump()
    changes = [
        f"model.{key}: {value}, as in {folder} (not {ours[key]})"
        for key, value in taken.model.model_dump().items()
        if key not in OWN and ours[key] != value
    ]
    return taken, changes


def as_begun(config: Config, before: Config) -> Config:
    """`config` with what a run took over from its initial model when it began; that model may have
    changed since, or be gone.
    """
    return _taking_over(config, before, before.train.init_from)


def _taking_over(config: Config, theirs: Config, init_from: str | None) -> Config:
    """`config` with the sizes and the tokenizer of `theirs`."""
    taken = {key: value for key, value in theirs.model.model_dump().items() if key not in OWN}
    model = config.model.model_copy(update={**taken, "preset": theirs.model.preset})
    train = config.train.model_copy(update={"init_from": init_from})
    return config.model_copy(update={"model": model, "tokenizer": theirs.tokenizer, "train": train})


def resolve(
    config: Config, run: RunFolder, checkpoint: ModelFolder | None, world: World
) -> tuple[ResolvedRun, Prepared, Compute]:
    """Decide all that settled settings leave open, prepare the text, and set up this rank's device.

    `checkpoint` is the one to continue from.
    """
    resolved, compute = start_computing(config, checkpoint, world)
    prepared = prepare(config, world, None if checkpoint is None else checkpoint.tokenizer)
    resolved = _with_batch_size(resolved, prepared, compute, checkpoint, world)
    resolved = with_decode_limits(resolved, prepared.train.lengths_seen)
    place = None if checkpoint is None else checkpoint.path
    return ResolvedRun(run.path, resolved, place), prepared, compute


def with_decode_limits(config: Config, seen: Lengths) -> Config:
    """`config` with numbers for `decode.max_src_len` and `decode.max_sentences`: its own, or what
    training sees.
    """
    found = {"max_src_len": max(8, seen.src["0.9999"]), "max_sentences": seen.sentences["0.99"]}
    limits = {name: value for name, value in found.items() if getattr(config.decode, name) == AUTO}
    return config.model_copy(update={"decode": config.decode.model_copy(update=limits)})


def _with_batch_size(
    config: Config,
    prepared: Prepared,
    compute: Compute,
    checkpoint: ModelFolder | None,
    world: World,
) -> Config:
    """`config` with a number for `batching.max_tokens`: its own, that of the run so far, or one
    found by trying on the first rank.
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
    """`config` with the precision and the threads of this run, and this rank's device, set up for
    it.

    What the user leaves open (`precision: auto`, no `threads`) is as in the checkpoint `resumed`;
    without one, the first rank decides. Raises `ConfigError` (on other ranks `RankError`) if the
    device of a rank cannot compute in this precision.
    """
    plan = world.broadcast_from_rank0(lambda: _decide(config, resumed, world))
    computes: list[Compute] = []

    def start(ranks: Sequence[int]) -> list[bool]:
        place = world.device_for_rank(config.device)
        try:
            compute = set_up_compute(
                place, plan["precision"], plan["threads_per_rank"],
                deterministic=config.train.deterministic,
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{error}{plan['why']}") from error
        computes.append(compute)
        return [compute.dtype != torch.bfloat16 or has_native_bf16(compute.device) for _ in ranks]

    is_fast = world.map_sharded(start, range(world.size))
    slow = [str(rank) for rank, fast in enumerate(is_fast) if not fast]
    if slow and is_fast[0]:  # of itself, the first rank has already said so
        logger.warning(
            "precision: bf16 has no hardware support on rank %s, and all ranks wait for it; "
            "fp32 is the faster choice",
            ", ".join(slow),
        )
    update = {"precision": plan["precision"], "threads": plan["threads"]}
    return config.model_copy(update=update), computes[0]


def _decide(config: Config, resumed: ModelFolder | None, world: World) -> dict[str, Any]:
    """Precision, threads of a machine and of a rank; tells the user what has changed."""
    before = {} if resumed is None else resumed.training_state()
    precision: str = config.precision
    why = ""
    if precision == AUTO and before.get("precision"):
        precision = before["precision"]
        why = (
            f"\nthis run has computed in {precision} so far; name another precision to change that"
        )
    if precision == AUTO:
        compute = set_up_compute(
            world.device_for_rank(config.device), precision, None, for_training=True
        )
        precision = NAMES[compute.dtype]
    threads = config.threads or before.get("threads") or torch.get_num_threads() * world.local_size
    _tell_changes(before, {"precision": precision, "threads": threads})
    if config.threads is None and threads == before.get("threads") and threads > num_cores():
        logger.warning(
            "threads: %d, as this run has had so far, on %d cores; fewer are faster here, but change "
            "the last bits of its numbers (threads=%d)",
            threads, num_cores(), num_cores(),
        )  # fmt: skip
    return {
        "precision": precision, "threads": threads, "threads_per_rank": world.threads_per_rank(threads),
        "why": why,
    }  # fmt: skip


def _tell_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name, value) != value:  # an old checkpoint does not know
            logger.info("changed since the last start: %s: %s -> %s", name, before[name], value)
