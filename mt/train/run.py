"""A run from its configuration: folder and lock, data, resume, training, and the status that schedulers read."""

import json
import logging
from pathlib import Path
from typing import Any

from mt.checkpoint import CheckpointManager, TrainingState
from mt.config import AUTO, Config, config_from_text, flatten, to_yaml
from mt.data.prepare import Prepared, prepare
from mt.device import Compute, choose_compute
from mt.errors import ConfigError, MTError
from mt.files import atomic_write, locked
from mt.log import format_seconds, setup_logging
from mt.train.autobatch import find_max_tokens, with_max_tokens
from mt.train.trainer import Trainer

logger = logging.getLogger(__name__)

# What may differ when a run goes on; any other difference would make it another run.
MAY_CHANGE = (
    "run_dir", "cache_dir", "device", "precision", "threads", "data.", "valid.", "decode.", "batching.prefetch", "train.max_steps",
    "train.max_epochs", "train.patience", "train.metric", "train.log_every", "train.valid_every", "train.save_every", "train.keep_last",
    "train.keep_best", "train.compile", "train.gradient_checkpointing",
)  # fmt: skip
STATES = {3: "diverged", 130: "interrupted", 143: "interrupted"}  # of status.json, by exit code; all others have failed


def train(config: Config) -> None:
    """Train, or go on with, the run that `config` describes. Raises `MTError` for all that a user can mend."""
    assert config.run_dir is not None
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with locked(run_dir / "lock", wait=False):
        setup_logging(run_dir / "train.log")
        try:
            limit = _train_locked(config, run_dir)
        except BaseException as error:
            code = _exit_code(error)
            _write_status(run_dir, state=STATES.get(code, "failed"), exit_code=code, message=str(error) or type(error).__name__)
            raise
        _write_status(run_dir, state="done", exit_code=0, message=limit)


def _exit_code(error: BaseException) -> int:
    """What the process will exit with."""
    if isinstance(error, MTError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code  # SIGTERM while preparing
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _train_locked(config: Config, run_dir: Path) -> str:
    checkpoints = CheckpointManager(run_dir, config.train.keep_last, config.train.keep_best, config.train.metric)
    resumed = checkpoints.newest()
    if resumed is not None:
        _check_same_run(config, run_dir)
    compute = choose_compute(config.device, config.precision, config.threads)
    _write_status(run_dir, state="running", exit_code=None, message="preparing")
    prepared = prepare(config)
    trainer = Trainer(_with_batch_size(config, prepared, compute, resumed), prepared, run_dir, compute, checkpoints)
    if resumed is not None:
        _resume(trainer, prepared, *resumed)
    atomic_write(run_dir / "config.yaml", to_yaml(config))
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    logger.info("model: %s parameters; %s; run folder %s", f"{num_parameters:,}", compute, run_dir)
    if (limit := trainer.limit_reached()) is not None:
        logger.info("%s: this run is finished at update %d (%s); raise train.max_steps to go on", run_dir, trainer.step, limit)
        return limit
    _write_status(run_dir, state="running", exit_code=None, message="training")
    limit = trainer.train()
    took = format_seconds(trainer.seconds())
    logger.info("done after update %d and %s (%s); %s", trainer.step, took, limit, _where(checkpoints))
    return limit


def _with_batch_size(config: Config, prepared: Prepared, compute: Compute, resumed: tuple[Path, TrainingState] | None) -> Config:
    """`config` with a number for `batching.max_tokens`: its own, that of the run so far, or one found by trying."""
    if config.batching.max_tokens != AUTO:
        return config
    return with_max_tokens(config, resumed[1].state["max_tokens"] if resumed else find_max_tokens(config, prepared, compute))


def _check_same_run(config: Config, run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    if not path.exists():
        return
    before = flatten(config_from_text(path.read_text(encoding="utf-8"), str(path)))
    now = flatten(config)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    refused = [key for key in changed if not key.startswith(MAY_CHANGE) or key.startswith("data.filters")]
    if refused:
        lines = [f"  {key}: {before.get(key)} -> {now.get(key)}" for key in refused]
        raise ConfigError(
            f"{run_dir}: this run was started with other settings:\n" + "\n".join(lines) + "\nput them back, or choose another run_dir"
        )
    for key in changed:
        logger.info("changed since the last start: %s: %s -> %s", key, before.get(key), now.get(key))


def _resume(trainer: Trainer, prepared: Prepared, folder: Path, training: TrainingState) -> None:
    now = {"data": prepared.data_fingerprint, "tokenizer": prepared.tokenizer.hash}
    other = [what for what, name in now.items() if training.state[what] != name]
    if other:
        raise ConfigError(f"{folder}: this run was started with other {' and '.join(other)}; put the text back, or choose another run_dir")
    trainer.load(folder, training)
    logger.info("going on from %s", folder)


def _where(checkpoints: CheckpointManager) -> str:
    best = checkpoints.ranked()
    return f"the best checkpoint is {checkpoints.path(best[0])}" if best else f"the last checkpoint is {checkpoints.folder / 'last'}"


def _write_status(run_dir: Path, **status: Any) -> None:
    atomic_write(run_dir / "status.json", json.dumps(status) + "\n")
