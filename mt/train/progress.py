"""Reports on a training run: progress bar or log lines, metrics.jsonl, and where the time goes."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from mt.config import TrainConfig
from mt.evaluation import TITLES
from mt.log import MetricLogger, format_seconds, shows_progress
from mt.train.gradients import UpdateStats

logger = logging.getLogger(__name__)


class LossWindow:
    """Sums over the updates since the last report.

    They are stored in checkpoints, so a resumed run writes the same reports as any other run.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Reset all sums."""
        self.loss = self.nll = 0.0  # sums over target tokens
        self.num_tokens = self.num_updates = 0
        self.lr = self.grad_norm = 0.0  # values of the last update

    def add(self, stats: UpdateStats) -> None:
        """Add the numbers of an update."""
        self.loss += stats.loss * stats.num_tokens
        self.nll += stats.nll * stats.num_tokens
        self.num_tokens += stats.num_tokens
        self.num_updates += 1
        self.lr, self.grad_norm = stats.lr, stats.grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Return the sums to store in a checkpoint, as JSON values."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums from `state_dict`."""
        vars(self).update({name: state[name] for name in vars(self)})


class TrainProgress:
    """Reports the loss and speed every `log_every` updates, and the scores of each validation."""

    def __init__(
        self,
        config: TrainConfig,
        metrics: MetricLogger | None,
        step: int,
        seconds: Callable[[], float],
        precision: str,
        window: LossWindow | None = None,
    ) -> None:
        """On all ranks except rank 0, `metrics` is None and nothing is reported.

        `seconds` returns how long the run has taken. `precision` is reported with scores.
        """
        self._window = window or LossWindow()
        self.config, self.metrics = config, metrics
        self.seconds, self.precision = seconds, precision
        self._start, self._first_step = time.perf_counter(), step
        self._spent = {"data": 0.0, "valid": 0.0, "save": 0.0}  # seconds per activity
        self._bar = tqdm(
            total=config.max_steps,
            initial=step,
            unit="update",
            disable=metrics is None or not shows_progress(),
            dynamic_ncols=True,
        )
        self._step, self._epoch = step, 0
        self._start_clock()

    def _start_clock(self) -> None:
        """Start measuring the speed until the next report."""
        self._timed_tokens = 0
        self._window_start, self._paused = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Count the time of the block as spent on "valid", "save", or waiting for "data"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._spent[activity] += seconds
            # Waiting for data lowers the reported training speed; validating and saving do not.
            if activity != "data":
                self._paused += seconds

    def add(self, step: int, epoch: int, stats: UpdateStats) -> None:
        """Add the numbers of an update, and report if a report is due."""
        self._step, self._epoch = step, epoch
        self._window.add(stats)
        self._timed_tokens += stats.num_tokens
        self._bar.update(1)
        if step % self.config.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Report the updates since the last report."""
        if self._window.num_updates and self.metrics is not None:
            self._report(self._window, self.metrics)
        self._window.clear()
        self._start_clock()

    def _report(self, window: LossWindow, metrics: MetricLogger) -> None:
        seconds = max(time.perf_counter() - self._window_start - self._paused, 1e-9)
        loss, nll = window.loss / window.num_tokens, window.nll / window.num_tokens
        rate, ppl = self._timed_tokens / seconds, math.exp(min(nll, 50))
        # A report that is not due is written when a process ends, so it is marked as partial (see
        # `MetricLogger`).
        partial = {"partial": True} if self._step % self.config.log_every else {}
        metrics.write(
            "train",
            self._step,
            epoch=self._epoch,
            loss=loss,
            nll=nll,
            ppl=ppl,
            lr=window.lr,
            grad_norm=window.grad_norm,
            tokens_per_second=rate,
            update_tokens=window.num_tokens / window.num_updates,
            seconds=self.seconds(),
            data_share=self._share("data"),
            save_share=self._share("save"),
            **partial,
        )
        text = f"loss {loss:.3f}, ppl {ppl:.2f}, {rate:,.0f} tgt tokens/s"
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
            return
        total = f"/{self.config.max_steps}" if self.config.max_steps else ""
        logger.info(
            f"update {self._step}{total}, epoch {self._epoch + 1}, {text}, "
            f"lr {window.lr:.2e}, ETA {self._eta()}"
        )

    def report_validation(
        self, step: int, scores: dict[str, float], improved: bool, bad_validations: int
    ) -> None:
        """Report the scores of a validation."""
        if self.metrics is None:
            return
        share = self._share("valid")
        self.metrics.write(
            "valid",
            step,
            **scores,
            precision=self.precision,
            improved=improved,
            seconds=self.seconds(),
            valid_share=share,
        )
        values = ", ".join(
            f"{TITLES[name]} {value:.{3 if name == 'loss' else 2}f}"
            for name, value in scores.items()
        )
        verdict = (
            "best so far"
            if improved
            else f"no better {TITLES[self.config.metric]} for {bad_validations} validations"
        )
        logger.info(
            f"valid update {step}: {values} in {self.precision} ({verdict}) after "
            f"{format_seconds(self.seconds())}; validation took {share:.0%} of the time"
        )

    def _share(self, activity: str) -> float:
        return self._spent[activity] / max(time.perf_counter() - self._start, 1e-9)

    def _eta(self) -> str:
        if self.config.max_steps is None:
            return "unknown"
        num_done = self._step - self._first_step
        elapsed = time.perf_counter() - self._start
        return format_seconds((self.config.max_steps - self._step) * elapsed / max(num_done, 1))

    def close(self) -> None:
        """Report the last updates, remove the progress bar and close `metrics`."""
        self.flush()
        self._bar.close()
        if self.metrics is not None:
            self.metrics.close()
