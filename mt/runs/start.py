"""Run the training that a configuration describes.

This locks the run folder, prepares the data, resumes, trains, and writes status.json for job
schedulers.
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
from mt.runs.resolve import final_settings, resolve
from mt.runtime.memory import is_out_of_memory
from mt.runtime.world import World, join_world
from mt.train.trainer import STATE_FORMAT, Trainer

logger = logging.getLogger(__name__)

FINAL_EXIT_CODES = (2, 3, 130, 143)  # a launcher must not restart the run after these exit codes
LEAST_BUSY = 0.8  # warn if ranks have work for less than this share of the time
# Maps exit codes to the state in status.json. For all others, the state is "failed".
STATES = {3: "diverged", 130: "interrupted", 143: "interrupted"}


def train(config: Config, *, overwrite: bool = False) -> None:
    """Start or resume the run that `config` describes.

    With `overwrite`, first delete an earlier run in the run folder. Under `torchrun`, all ranks
    call this function. Raises `MTError` for errors that users can fix.
    """
    assert config.run_dir is not None
    run = RunFolder(Path(config.run_dir))
    with join_world(config.train.timeout) as world, contextlib.ExitStack() as lock:
        setup_logging(is_rank0=world.is_rank0)
        overwrite = overwrite and not world.attempt
        # All ranks use the settings that rank 0 has read, even if a file changes in the meantime.
        text = world.broadcast_from_rank0(
            lambda: to_yaml(_claim(config, run, overwrite, world.attempt, lock))
        )
        try:
            config = config_from_text(text, str(run), is_saved=True)
            limit = _train_locked(config, run, overwrite, world)
        except BaseException as error:
            if world.presence.is_reporter:
                code = exit_code(error)
                state = STATES.get(code, "failed")
                run.write_status(state=state, exit_code=code, message=_message(error))
            raise
        if world.is_rank0:
            run.write_status(state="done", exit_code=0, message=limit)


def _claim(
    config: Config, run: RunFolder, overwrite: bool, attempt: int, lock: contextlib.ExitStack
) -> Config:
    """Lock the run folder until `lock` is closed, check it, and return the final settings."""
    if config.train.patience is not None and not config.data.valid:
        raise ConfigError(
            "train.patience needs validation data, but data.valid is empty; "
            "add validation data or remove train.patience"
        )
    run.path.mkdir(parents=True, exist_ok=True)
    lock.enter_context(run.lock())
    if attempt:
        _check_restart(run, attempt)
    config, messages = final_settings(config, run, overwrite)
    run.remove_leftovers()
    setup_logging(run.log_path)
    for message in messages:
        logger.info("%s", message)
    return config


def _check_restart(run: RunFolder, attempt: int) -> None:
    """Raise `Interrupted` if a restart by the launcher makes no sense.

    That is the case if the run was stopped on purpose, or would only fail again.
    """
    status = run.status()
    if status.get("exit_code") in FINAL_EXIT_CODES:
        raise Interrupted(f"not restarted: {status.get('message')}", status["exit_code"])
    logger.info("restarted by the launcher (restart %d)", attempt)


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped while preparing; run the same command to continue"
    return str(error) or type(error).__name__


def _train_locked(config: Config, run: RunFolder, overwrite: bool, world: World) -> str:
    """Train a run whose folder is locked, and return the limit that ended it."""
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
    _log_model_and_device(trainer, world)
    if (limit := trainer.limit_reached()) is not None and trainer.is_validated():
        setting = limit.partition(":")[0]
        logger.info(
            "%s: this run is finished at update %d (%s); raise %s to train longer",
            run,
            trainer.step,
            limit,
            setting,
        )
        return limit
    if world.is_rank0:
        run.write_status(state="running", exit_code=None, message="training")
    limit = _train_together(trainer, world)
    duration = format_seconds(trainer.seconds())
    result = _best_or_last(checkpoints)
    logger.info("done after update %d and %s (%s); %s", trainer.step, duration, limit, result)
    return limit


def _log_model_and_device(trainer: Trainer, world: World) -> None:
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    device = (
        str(trainer.compute)
        if world.is_alone
        else f"{world.size} ranks ({trainer.config.train.parallel}), each {trainer.compute}"
    )
    logger.info(
        "model: %s parameters; %s; run folder %s", f"{num_parameters:,}", device, trainer.run
    )


def _check_shares(loader: TrainLoader, size: int, is_new: bool) -> None:
    """Check that all `size` ranks will have work.

    Raises `ConfigError` if some ranks of a new run would never have work. Warns if ranks would
    often be idle.
    """
    counts = [len(update) for update in itertools.islice(loader.epoch_updates(), 100)]
    busy = sum(counts) / sum(size * -(-count // size) for count in counts)
    remedy = "raise train.grad_accum_steps or train.batch_tokens, or lower batching.max_tokens"
    if is_new and max(counts) < size:
        raise ConfigError(
            f"updates have at most {max(counts)} micro-batches, too few for {size} ranks;\n{remedy}"
        )
    if busy < LEAST_BUSY:
        logger.warning(
            "ranks are idle %.0f%% of the time, because %d ranks do not divide the micro-batches "
            "of an update evenly;\n%s",
            100 - 100 * busy,
            size,
            remedy,
        )


def _train_together(trainer: Trainer, world: World) -> str:
    """Train, and return the limit that ended training.

    If memory runs out, raises an `MTError` that suggests a `batching.max_tokens` that fits. If a
    rank is lost, raises an error that tells which one.
    """
    try:
        return trainer.train()
    except (RuntimeError, MemoryError) as error:
        if world.presence.means_lost_rank(error):
            message = world.presence.kill_lost_ranks(error)
            raise RankLostError(f"update {trainer.step}: {message}") from error
        if not is_out_of_memory(error):
            raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Outside the `except` block, no traceback keeps the tensors of the failed update alive.
    now = trainer.config.batching.max_tokens
    remedy = "start from scratch with batching.max_tokens "
    if not world.is_alone:  # the other ranks are waiting and cannot help try out sizes
        remedy += f"below {now}"
    elif fits := smaller_that_fits(trainer):
        remedy += f"{fits}, which was just tried and fits (instead of {now})"
    else:
        remedy = "use a smaller model"
    raise MTError(
        f"update {trainer.step}: out of memory ({cause})\n"
        f"{remedy}, and set train.batch_tokens to keep the size of an update;\n"
        "or resume with train.gradient_checkpointing=true"
    )


def _resume(trainer: Trainer, prepared: Prepared, folder: ModelFolder) -> None:
    before = folder.training_state()
    names = {prepared.data_fingerprint}
    if before.get("format", 1) < STATE_FORMAT and before.get("data") not in names:
        names.add(fingerprint_before_0_2(trainer.config, prepared.tokenizer))
    if before.get("data") not in names:
        raise ConfigError(
            f"{folder}: this run was started with other data; restore it, or choose another run_dir"
        )
    try:
        trainer.load(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}: its training state cannot be used: {type(error).__name__}: {error}"
        ) from error
    logger.info("resuming from %s", folder)


def _best_or_last(checkpoints: CheckpointManager) -> str:
    best = checkpoints.ranked()
    return (
        f"the best checkpoint is {checkpoints.path(best[0])}"
        if best
        else f"the last checkpoint is {checkpoints.folder / 'last'}"
    )
