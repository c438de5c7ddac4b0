"""A run from its configuration: folder and lock, data, resume, training, and the status that schedulers read."""

import contextlib
import itertools
import json
import logging
from pathlib import Path
from typing import Any

from mt.checkpoint import TRAINING, CheckpointManager, read_json
from mt.config import AUTO, HEADER, Config, config_from_text, flatten, to_yaml, with_defaults_of
from mt.data.order import TrainLoader
from mt.data.prepare import Prepared, fingerprint_before_0_2, prepare
from mt.data.store import Lengths
from mt.errors import CheckpointError, ConfigError, Interrupted, MTError, RankLostError, exit_code
from mt.files import atomic_write, locked, remove_folder, remove_leftovers
from mt.log import format_seconds, setup_logging
from mt.runs.autobatch import find_max_tokens, smaller_that_fits, with_max_tokens
from mt.runs.compute import start_computing
from mt.runtime import World, joined
from mt.runtime.device import Compute, is_out_of_memory
from mt.train.finetune import as_begun, with_initial_model
from mt.train.trainer import STATE_FORMAT, Trainer

logger = logging.getLogger(__name__)

# What may differ when a run goes on; any other difference would make it another run.
MAY_CHANGE = (
    "run_dir", "cache_dir", "device", "precision", "threads", "data.", "valid.", "decode.", "optim.", "batching.prefetch",
    "train.max_steps", "train.max_bad_updates",
    "train.max_epochs", "train.patience", "train.metric", "train.log_every", "train.valid_every", "train.save_every", "train.keep_last",
    "train.keep_best", "train.divergence_factor", "train.divergence_window", "train.parallel", "train.timeout",
    "train.compile", "train.deterministic", "train.gradient_checkpointing", "tokenizer.max_lossy_share",
)  # fmt: skip
OUTPUTS = (
    "checkpoints",
    "metrics.jsonl",
    "tensorboard",
    "valid",
    "evaluations",
    "crash",
    "report.html",
)  # what --overwrite deletes
ENDS_FOR_GOOD = (2, 3, 130, 143)  # exit codes after which a launcher need not start the run anew
LEAST_BUSY = 0.8  # share of the time in which ranks have work, below which a warning is due
STATES = {
    3: "diverged",
    130: "interrupted",
    143: "interrupted",
}  # of status.json, by exit code; all others have failed


def train(config: Config, *, overwrite: bool = False) -> None:
    """Train, or go on with, the run that `config` describes; with `overwrite`, forget what its folder holds of an earlier run.

    Under `torchrun` all ranks call this. Raises `MTError` for all that a user can mend.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    with joined(config.train.timeout) as world, contextlib.ExitStack() as held:
        setup_logging(is_first=world.is_first)
        overwrite = overwrite and not world.attempt
        # What is trained is what the first rank reads, and the checkpoint to begin with the one that it finds.
        text = world.first(lambda: to_yaml(_claim(config, run_dir, overwrite, world.attempt, held)))
        try:
            limit = _train_claimed(
                config_from_text(text, str(run_dir), is_saved=True), run_dir, overwrite, world
            )
        except BaseException as error:
            if world.presence.speaks:
                code = exit_code(error)
                write_status(
                    run_dir,
                    state=STATES.get(code, "failed"),
                    exit_code=code,
                    message=_message(error),
                )
            raise
        if world.is_first:
            write_status(run_dir, state="done", exit_code=0, message=limit)


def _claim(
    config: Config, run_dir: Path, overwrite: bool, attempt: int, held: contextlib.ExitStack
) -> Config:
    """Lock the folder until `held` is closed, and see that it is this run's; gives what is to be trained."""
    if config.train.patience is not None and not config.data.valid:
        raise ConfigError(
            "train.patience counts validations, and there is no data.valid; name validation text, or leave patience out"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(run_dir / "lock"))
    if attempt:
        _check_last_end(run_dir, attempt)
    before = None if overwrite else _settings_before(run_dir)
    if before is not None:
        config = with_defaults_of(config, before.format)
    taken_over: list[str] = []
    if (
        before is not None
        and before.train.init_from is not None
        and any(run_dir.glob("checkpoints/step_*"))
    ):
        config = as_begun(config, before)
    else:
        config, taken_over = with_initial_model(config)
    _check_folder(run_dir, overwrite)
    changed = [] if before is None else _changed_settings(config, before, run_dir)
    remove_leftovers(run_dir)
    setup_logging(run_dir / "train.log")
    for line in taken_over:
        logger.info("%s", line)
    for line in changed:
        logger.info("changed since the last start: %s", line)
    return config


def _check_last_end(run_dir: Path, attempt: int) -> None:
    """Raise again what ended this run before its launcher started it anew, where that was asked for or would only come again."""
    status = read_status(run_dir)
    if status.get("exit_code") in ENDS_FOR_GOOD:
        raise Interrupted(f"not started anew: {status.get('message')}", status["exit_code"])
    logger.info("started anew by the launcher (restart %d)", attempt)


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped while preparing; the same command goes on"
    return str(error) or type(error).__name__


def _train_claimed(config: Config, run_dir: Path, overwrite: bool, world: World) -> str:
    if world.is_first:
        write_status(run_dir, state="running", exit_code=None, message="preparing")
    checkpoints = CheckpointManager(
        run_dir, config.train.keep_last, config.train.keep_best, config.train.metric, world
    )
    resumed = None if overwrite else checkpoints.newest()
    resolved, compute = start_computing(config, resumed, world)
    prepared = prepare(config, world, None if resumed is None else resumed / "tokenizer")
    if overwrite:
        world.first(lambda: _forget(run_dir))
    resolved = with_decode_limits(
        _with_batch_size(resolved, prepared, compute, resumed, world), prepared.train.lengths_seen
    )
    trainer = Trainer(
        resolved, prepared, run_dir, compute, checkpoints, world, is_new=resumed is None
    )
    if not world.is_alone:
        world.first(lambda: _check_shares(trainer.loader, world.size, is_new=resumed is None))
    if resumed is not None:
        _resume(trainer, prepared, resumed)
    if world.is_first:
        atomic_write(run_dir / "config.yaml", HEADER + to_yaml(config))
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    where = (
        str(compute)
        if world.is_alone
        else f"{world.size} ranks ({config.train.parallel}), each {compute}"
    )
    logger.info("model: %s parameters; %s; run folder %s", f"{num_parameters:,}", where, run_dir)
    if (limit := trainer.limit_reached()) is not None and trainer.is_validated():
        setting = limit.partition(":")[0]
        logger.info(
            "%s: this run is finished at update %d (%s); raise %s to go on",
            run_dir,
            trainer.step,
            limit,
            setting,
        )
        return limit
    if world.is_first:
        write_status(run_dir, state="running", exit_code=None, message="training")
    limit = _train_together(trainer, world)
    took = format_seconds(trainer.seconds())
    logger.info(
        "done after update %d and %s (%s); %s", trainer.step, took, limit, _where(checkpoints)
    )
    return limit


def _check_shares(loader: TrainLoader, size: int, is_new: bool) -> None:
    """Refuse a new run in which some of `size` ranks would never have anything to do; warn where they often have not."""
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
    """Train; where memory runs out, find out what would have fitted, and where a rank is lost, which. Raises `MTError` with it."""
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


def with_decode_limits(config: Config, seen: Lengths) -> Config:
    """`config` with numbers for `decode.max_src_len` and `decode.max_sentences`: its own, or what training sees."""
    found = {"max_src_len": max(8, seen.src["0.9999"]), "max_sentences": seen.sentences["0.99"]}
    limits = {name: value for name, value in found.items() if getattr(config.decode, name) == AUTO}
    return config.model_copy(update={"decode": config.decode.model_copy(update=limits)})


def _with_batch_size(
    config: Config, prepared: Prepared, compute: Compute, resumed: Path | None, world: World
) -> Config:
    """`config` with a number for `batching.max_tokens`: its own, that of the run so far, or one found by trying on the first rank."""
    if config.batching.max_tokens != AUTO:
        return config
    if resumed is not None:
        return with_max_tokens(config, read_json(resumed / TRAINING / "state.json")["max_tokens"])
    return with_max_tokens(
        config, world.first(lambda: find_max_tokens(config, prepared, compute, world.size))
    )


def _forget(run_dir: Path) -> None:
    """Delete what an earlier run left in its folder, and nothing else; its log goes on."""
    for path in (run_dir / name for name in OUTPUTS):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def _settings_before(run_dir: Path) -> Config | None:
    """The settings that the run in this folder had so far; None if there is no run of mt."""
    path = run_dir / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return config_from_text(text, str(path), is_saved=True) if text.startswith(HEADER) else None


def _check_folder(run_dir: Path, overwrite: bool) -> None:
    """Refuse a folder whose config.yaml is no run's, and one that `overwrite` would empty though it may be no run's."""
    path = run_dir / "config.yaml"
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        raise ConfigError(
            f"{path}: not written by a run of mt, and would be overwritten; choose another run_dir"
        )
    if (
        overwrite
        and not path.exists()
        and (there := [name for name in OUTPUTS if (run_dir / name).exists()])
    ):
        raise ConfigError(
            f"{run_dir}: {', '.join(there)} without the config.yaml of a run of mt; --overwrite deletes nothing of yours"
        )


def _changed_settings(config: Config, before: Config, run_dir: Path) -> list[str]:
    """Settings that have changed and may. Raises `ConfigError` if any has changed that may not."""
    then, now = flatten(before), flatten(config)
    changed = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    refused = [
        key for key in changed if not key.startswith(MAY_CHANGE) or key.startswith("data.filters")
    ]
    if refused:
        lines = [f"  {key}: {then.get(key)} -> {now.get(key)}" for key in refused]
        raise ConfigError(
            f"{run_dir}: this run was started with other settings:\n"
            + "\n".join(lines)
            + "\nput them back, choose another run_dir, or "
            "start anew with --overwrite"
        )
    told = [key for key in changed if key not in ("precision", "threads")]  # see `start_computing`
    return [f"{key}: {then.get(key)} -> {now.get(key)}" for key in told]


def _resume(trainer: Trainer, prepared: Prepared, folder: Path) -> None:
    before = read_json(folder / TRAINING / "state.json")
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


def read_status(run_dir: Path) -> dict[str, Any]:
    """What status.json says of a run; nothing where there is none."""
    try:
        return read_json(run_dir / "status.json")
    except CheckpointError:
        return {}


def write_status(run_dir: Path, **status: Any) -> None:
    """Write status.json, which schedulers read; a failure is a warning."""
    try:
        atomic_write(run_dir / "status.json", json.dumps(status) + "\n")
    except OSError as error:
        logger.warning("%s: could not be written: %s", run_dir / "status.json", error)
