"""A run from its configuration: folder and lock, data, resume, training, and the status that schedulers read."""

import json
import logging
from pathlib import Path
from typing import Any

from mt.checkpoint import CheckpointManager, TrainingState
from mt.config import AUTO, Config, config_from_text, flatten, to_yaml
from mt.data.prepare import Prepared, prepare
from mt.device import Compute, choose_compute, is_out_of_memory
from mt.errors import CheckpointError, ConfigError, MTError
from mt.files import atomic_write, locked, remove_folder, remove_leftovers
from mt.log import format_seconds, setup_logging
from mt.train.autobatch import find_max_tokens, smaller_that_fits, with_max_tokens
from mt.train.finetune import with_initial_model
from mt.train.trainer import Trainer

logger = logging.getLogger(__name__)

# What may differ when a run goes on; any other difference would make it another run.
MAY_CHANGE = (
    "run_dir", "cache_dir", "device", "precision", "threads", "data.", "valid.", "decode.", "batching.prefetch", "train.max_steps",
    "train.max_epochs", "train.patience", "train.metric", "train.log_every", "train.valid_every", "train.save_every", "train.keep_last",
    "train.keep_best", "train.divergence_factor", "train.divergence_window", "train.compile", "train.gradient_checkpointing",
)  # fmt: skip
HEADER = "# Written by mt: every setting of this run.\n"
OUTPUTS = ("checkpoints", "metrics.jsonl", "tensorboard", "valid", "evaluations", "crash", "report.html")  # what --overwrite deletes
STATES = {3: "diverged", 130: "interrupted", 143: "interrupted"}  # of status.json, by exit code; all others have failed


def train(config: Config, *, overwrite: bool = False) -> None:
    """Train, or go on with, the run that `config` describes; with `overwrite`, forget what its folder holds of an earlier run.

    Raises `MTError` for all that a user can mend.
    """
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / "lock", wait=False):
        config, taken_over = with_initial_model(config)
        changed = _check_folder(config, run_dir, overwrite)
        remove_leftovers(run_dir)
        setup_logging(run_dir / "train.log")
        for line in taken_over:
            logger.info("%s", line)
        for line in changed:
            logger.info("changed since the last start: %s", line)
        try:
            limit = _train_locked(config, run_dir, overwrite)
        except BaseException as error:
            code = _exit_code(error)
            _write_status(run_dir, state=STATES.get(code, "failed"), exit_code=code, message=_message(error))
            raise
        _write_status(run_dir, state="done", exit_code=0, message=limit)


def _exit_code(error: BaseException) -> int:
    """What the process will exit with."""
    if isinstance(error, MTError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code  # SIGTERM while preparing
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return "stopped while preparing; the same command goes on"
    return str(error) or type(error).__name__


def _train_locked(config: Config, run_dir: Path, overwrite: bool) -> str:
    compute = choose_compute(config.device, config.precision, config.threads)
    _write_status(run_dir, state="running", exit_code=None, message="preparing")
    prepared = prepare(config)
    if overwrite:
        _forget(run_dir)
    checkpoints = CheckpointManager(run_dir, config.train.keep_last, config.train.keep_best, config.train.metric)
    resumed = checkpoints.newest()
    trainer = Trainer(_with_batch_size(config, prepared, compute, resumed), prepared, run_dir, compute, checkpoints)
    if resumed is not None:
        _resume(trainer, prepared, *resumed)
        resumed = None  # as large as the model and its optimizer
    atomic_write(run_dir / "config.yaml", HEADER + to_yaml(config))
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    logger.info("model: %s parameters; %s; run folder %s", f"{num_parameters:,}", compute, run_dir)
    if (limit := trainer.limit_reached()) is not None and trainer.is_validated():
        logger.info("%s: this run is finished at update %d (%s); raise train.max_steps to go on", run_dir, trainer.step, limit)
        return limit
    _write_status(run_dir, state="running", exit_code=None, message="training")
    limit = _train_in_memory(trainer)
    took = format_seconds(trainer.seconds())
    logger.info("done after update %d and %s (%s); %s", trainer.step, took, limit, _where(checkpoints))
    return limit


def _train_in_memory(trainer: Trainer) -> str:
    """Train; where memory runs out, find out what would have fitted. Raises `MTError` with it."""
    try:
        return trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Out here the error is gone, and with it what the failed update held.
    fits, now = smaller_that_fits(trainer), trainer.config.batching.max_tokens
    smaller = f"start anew with batching.max_tokens: {fits}, which fits (tried just now; it was {now})" if fits else "use a smaller model"
    raise MTError(
        f"update {trainer.step}: out of memory ({cause})\n{smaller}, with train.batch_tokens to keep the update as large; or go on with "
        "train.gradient_checkpointing=true"
    )


def _with_batch_size(config: Config, prepared: Prepared, compute: Compute, resumed: tuple[Path, TrainingState] | None) -> Config:
    """`config` with a number for `batching.max_tokens`: its own, that of the run so far, or one found by trying."""
    if config.batching.max_tokens != AUTO:
        return config
    return with_max_tokens(config, resumed[1].state["max_tokens"] if resumed else find_max_tokens(config, prepared, compute))


def _forget(run_dir: Path) -> None:
    """Delete what an earlier run left in its folder, and nothing else; its log goes on."""
    for path in (run_dir / name for name in OUTPUTS):
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def _check_folder(config: Config, run_dir: Path, overwrite: bool) -> list[str]:
    """Settings that have changed and may. Refuses a folder whose config.yaml is another run's (unless `overwrite`), or no run's at all."""
    path = run_dir / "config.yaml"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if path.exists() and not text.startswith(HEADER):
        raise ConfigError(f"{path}: not written by a run of mt, and would be overwritten; choose another run_dir")
    if overwrite and not path.exists() and (there := [name for name in OUTPUTS if (run_dir / name).exists()]):
        raise ConfigError(f"{run_dir}: {', '.join(there)} without the config.yaml of a run of mt; --overwrite deletes nothing of yours")
    if overwrite or not path.exists():
        return []
    before = flatten(config_from_text(text, str(path)))
    now = flatten(config)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [key for key in changed if not key.startswith(MAY_CHANGE) or key.startswith("data.filters")]
    if refused:
        lines = [f"  {key}: {before.get(key)} -> {now.get(key)}" for key in refused]
        raise ConfigError(
            f"{run_dir}: this run was started with other settings:\n" + "\n".join(lines) + "\nput them back, choose another run_dir, or "
            "start anew with --overwrite"
        )
    return [f"{key}: {before.get(key)} -> {now.get(key)}" for key in changed]


def _resume(trainer: Trainer, prepared: Prepared, folder: Path, training: TrainingState) -> None:
    now = {"data": prepared.data_fingerprint, "tokenizer": prepared.tokenizer.hash}
    other = [what for what, name in now.items() if training.state.get(what) != name]
    if other:
        raise ConfigError(f"{folder}: this run was started with other {' and '.join(other)}; put the text back, or choose another run_dir")
    try:
        trainer.load(folder, training)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: its training state cannot be used: {type(error).__name__}: {error}") from error
    logger.info("going on from %s", folder)


def _where(checkpoints: CheckpointManager) -> str:
    best = checkpoints.ranked()
    return f"the best checkpoint is {checkpoints.path(best[0])}" if best else f"the last checkpoint is {checkpoints.folder / 'last'}"


def _write_status(run_dir: Path, **status: Any) -> None:
    try:
        atomic_write(run_dir / "status.json", json.dumps(status) + "\n")
    except OSError as error:
        logger.warning("%s: could not be written: %s", run_dir / "status.json", error)
