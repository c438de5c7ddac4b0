"""A run from its configuration: folder and lock, data, resume, training, and the status that
schedulers read.
"""

import contextlib
import itertools
import logging
from pathlib import Path

from mt.artifacts import CheckpointManager, ModelFolder, RunFolder
from mt.config import Config, config_from_text, to_yaml
from mt.data.order import TrainLoader
from mt.data.prepare import Prepared, fingerprint_before_0_2
from mt.errors import CheckpointError, ConfigError, Interrupted, MTError, RankLostError, exit_code
from mt.log import format_seconds, setup_logging
from mt.runs.autobatch import smaller_that_fits
from mt.runs.resolve import resolve, settle
from mt.runtime.memory import is_out_of_memory
from mt.runtime.world import World, joined
from mt.train.trainer import STATE_FORMAT, Trainer

logger = logging.getLogger(__name__)

ENDS_FOR_GOOD = (2, 3, 130, 143)  # exit codes after which a launcher need not start the run anew
LEAST_BUSY = 0.8  # share of the time in which ranks have work, below which a warning is due
STATES = {
    3: "diverged",
    130: "interrupted",
    143: "interrupted",
}  # of status.json, by exit code; all others have failed


def train(config: Config, *, overwrite: bool = False) -> None:
    """Train, or go on with, the run that `config` describes; with `overwrite`, forget what its
    folder holds of an earlier run.

    Under `torchrun` all ranks call this. Raises `MTError` for all that a user can mend.
    """
    assert config.run_dir is not None
    run = RunFolder(Path(config.run_dir))
    with joined(config.train.timeout) as world, contextlib.ExitStack() as held:
        setup_logging(is_first=world.is_rank0)
        overwrite = overwrite and not world.attempt
        # What is trained is what the first rank reads, and the checkpoint to begin with the one
        # that it finds.
        text = world.broadcast_from_rank0(
            lambda: to_yaml(_claim(config, run, overwrite, world.attempt, held))
        )
        try:
            settled = config_from_text(text, str(run), is_saved=True)
            limit = _train_claimed(settled, run, overwrite, world)
        except BaseException as error:
            if world.presence.speaks:
                code = exit_code(error)
                state = STATES.get(code, "failed")
                run.write_status(state=state, exit_code=code, message=_message(error))
            raise
        if world.is_rank0:
            run.write_status(state="done", exit_code=0, message=limit)


def _claim(
    config: Config, run: RunFolder, overwrite: bool, attempt: int, held: contextlib.ExitStack
) -> Config:
    """Lock the folder until `held` is closed, and see that it is this run's; gives what is to be
    trained.
    """
    if config.train.patience is not None and not config.data.valid:
        raise ConfigError(
            "train.patience counts validations, and there is no data.valid; name validation text, or leave patience out"
        )
    run.path.mkdir(parents=True, exist_ok=True)
    held.enter_context(run.lock())
    if attempt:
        _check_last_end(run, attempt)
    config, messages = settle(config, run, overwrite)
    run.remove_leftovers()
    setup_logging(run.log_path)
    for message in messages:
        logger.info("%s", message)
    return config


def _check_last_end(run: RunFolder, attempt: int) -> None:
    """Raise again what ended this run before its launcher started it anew, where that was asked for
    or would only come again.
    """
    status = run.status()
    if status.get("exit_code") in ENDS_FOR_GOOD:
        raise Interrupted(f"not started anew: {status.get('message')}", status["exit_code"])
    logger.info("started anew by the launcher (restart %d)", attempt)


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped while preparing; the same command goes on"
    return str(error) or type(error).__name__


def _train_claimed(config: Config, run: RunFolder, overwrite: bool, world: World) -> str:
    """Train a run whose settings are settled and whose folder is locked; gives the limit that ended
    it.
    """
    if world.is_rank0:
        run.write_status(state="running", exit_code=None, message="preparing")
    train = config.train
    checkpoints = CheckpointManager(run.path, train.keep_last, train.keep_best, train.metric, world)
    checkpoint = None if overwrite else checkpoints.newest()
    resolved, prepared, compute = resolve(config, run, checkpoint, world)
    if overwrite:
        world.broadcast_from_rank0(run.delete_outputs)
    trainer = Trainer(resolved, prepared, compute, checkpoints, world)
    if not world.is_alone:
        world.broadcast_from_rank0(
            lambda: _check_shares(trainer.loader, world.size, is_new=resolved.is_new)
        )
    if checkpoint is not None:
        _resume(trainer, prepared, checkpoint)
    if world.is_rank0:
        run.write_settings(config)
    _introduce(trainer, world)
    if (limit := trainer.limit_reached()) is not None and trainer.is_validated():
        setting = limit.partition(":")[0]
        logger.info(
            "%s: this run is finished at update %d (%s); raise %s to go on",
            run, trainer.step, limit, setting,
        )  # fmt: skip
        return limit
    if world.is_rank0:
        run.write_status(state="running", exit_code=None, message="training")
    limit = _train_together(trainer, world)
    took = format_seconds(trainer.seconds())
    logger.info(
        "done after update %d and %s (%s); %s", trainer.step, took, limit, _where(checkpoints)
    )
    return limit


def _introduce(trainer: Trainer, world: World) -> None:
    """Say what is trained, and where."""
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = (
        str(trainer.compute)
        if world.is_alone
        else f"{world.size} ranks ({trainer.config.train.parallel}), each {trainer.compute}"
    )
    logger.info(
        "model: %s parameters; %s; run folder %s", f"{num_parameters:,}", where, trainer.run
    )


def _check_shares(loader: TrainLoader, size: int, is_new: bool) -> None:
    """Refuse a new run in which some of `size` ranks would never have anything to do; warn where
    they often have not.
    """
    counts = [len(update) for update in itertools.islice(loader.epoch_updates(), 100)]
    busy = sum(counts) / sum(size * -(-count // size) for count in counts)
    remedy = "raise train.grad_accum_steps or train.batch_tokens, or lower batching.max_tokens"
    if is_new and max(counts) < size:
        raise ConfigError(
            f"updates have {max(counts)} micro-batches at most, over all ranks, too few for {size} ranks; {remedy}"
        )
    if busy < LEAST_BUSY:
        idle = 100 - 100 * busy
        logger.warning(
            "ranks have no work for %.0f%% of the time: the micro-batches of updates do not go into %d; %s",
            idle,
            size,
            remedy,
        )


def _train_together(trainer: Trainer, world: World) -> str:
    """Train; where memory runs out, find out what would have fitted, and where a rank is lost,
    which. Raises `MTError` with it.
    """
    try:
        return trainer.train()
    except (RuntimeError, MemoryError) as error:
        if (lost := world.presence.lost(error)) is not None:
            raise RankLostError(f"update {trainer.step}: {lost}") from error
        if not is_out_of_memory(error):
            raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Out here the error is gone, and with it what the failed update held.
    now = trainer.config.batching.max_tokens
    if not world.is_alone:  # the others wait for this rank, and cannot join in trying
        smaller = f"start anew with a batching.max_tokens below {now}"
    elif fits := smaller_that_fits(trainer):
        smaller = f"start anew with batching.max_tokens: {fits}, which fits (tried just now; it was {now})"
    else:
        smaller = "use a smaller model"
    raise MTError(
        f"update {trainer.step}: out of memory ({cause})\n{smaller}, with train.batch_tokens to keep the update as large; or go on with "
        "train.gradient_checkpointing=true"
    )


def _resume(trainer: Trainer, prepared: Prepared, folder: ModelFolder) -> None:
    before = folder.training_state()
    names = {prepared.data_fingerprint}
    if before.get("format", 1) < STATE_FORMAT and before.get("data") not in names:
        names.add(fingerprint_before_0_2(trainer.config, prepared.tokenizer))
    if before.get("data") not in names:
        raise ConfigError(
            f"{folder}: this run was started with other text; put it back, or choose another run_dir"
        )
    try:
        trainer.load(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: its training state cannot be used: {type(error).__name__}: {error}"
        ) from error
    logger.info("going on from %s", folder)


def _where(checkpoints: CheckpointManager) -> str:
    best = checkpoints.ranked()
    return (
        f"the best checkpoint is {checkpoints.path(best[0])}"
        if best
        else f"the last checkpoint is {checkpoints.folder / 'last'}"
    )
