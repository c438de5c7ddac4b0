"""What a person sees of a training run: the progress bar or plain lines, metrics.jsonl, and where
the time went.
"""

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
    """Sums over the updates since the last report; a resume takes them over, so that the reports
    are those of a run without one.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.loss = self.nll = 0.0  # times target tokens
        self.num_tokens = self.num_updates = 0
        self.lr = self.grad_norm = 0.0  # of the last update

    def add(self, stats: UpdateStats) -> None:
        """Take in an update."""
        self.loss += stats.loss * stats.num_tokens
        self.nll += stats.nll * stats.num_tokens
        self.num_tokens += stats.num_tokens
        self.num_updates += 1
        self.lr, self.grad_norm = stats.lr, stats.grad_norm

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update({name: state[name] for name in vars(self)})


class TrainProgress:
    """Adds up updates and times; reports every `log_every` updates."""

    def __init__(
        self, config: TrainConfig, metrics: MetricLogger | None, step: int, seconds: Callable[[], float],
        precision: str, window: LossWindow | None = None,
    ) -> None:  # fmt: skip
        """Without `metrics`, nothing is written or shown: the first rank does. `precision` is that
        of its scores.
        """
        self._window = window or LossWindow()
        self.config = config
        self.metrics = metrics
        self.seconds = seconds
        self.precision = precision
        self._began, self._first_step = time.perf_counter(), step
        self._shares = {"data": 0.0, "valid": 0.0, "save": 0.0}
        hidden = metrics is None or not shows_progress()
        self._bar = tqdm(
            total=config.max_steps, initial=step, unit="update", disable=hidden, dynamic_ncols=True
        )
        self._step, self._epoch = step, 0
        self._time_window()

    def _time_window(self) -> None:
        self._timed_tokens = 0  # in the window, of this process
        self._window_began, self._window_aside = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._shares[what] += took
            if (
                what != "data"
            ):  # waiting for data slows training down; validating and saving stand beside it
                self._window_aside += took

    def waiting(self) -> contextlib.AbstractContextManager[None]:
        """Counts a block as waiting for data."""
        return self._timed("data")

    def validating(self) -> contextlib.AbstractContextManager[None]:
        """Counts a block as validation."""
        return self._timed("valid")

    def saving(self) -> contextlib.AbstractContextManager[None]:
        """Counts a block as saving."""
        return self._timed("save")

    def add(self, step: int, epoch: int, stats: UpdateStats) -> None:
        """Take in one update, and report where a report is due."""
        self._step, self._epoch = step, epoch
        self._window.add(stats)
        self._timed_tokens += stats.num_tokens
        self._bar.update(1)
        if step % self.config.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Report the updates since the last report."""
        window = self._window
        if not window.num_updates or self.metrics is None:
            window.clear()
            self._time_window()
            return
        seconds = max(time.perf_counter() - self._window_began - self._window_aside, 1e-9)
        loss, nll = window.loss / window.num_tokens, window.nll / window.num_tokens
        rate, ppl = self._timed_tokens / seconds, math.exp(min(nll, 50))
        self.metrics.write(
            "train", self._step, epoch=self._epoch, loss=loss, nll=nll, ppl=ppl, lr=window.lr, grad_norm=window.grad_norm,
            tokens_per_second=rate, update_tokens=window.num_tokens / window.num_updates, seconds=self.seconds(),
            data_share=self._share("data"), save_share=self._share("save"),
            # the last report of this process: see `MetricLogger`
            **({"partial": True} if self._step % self.config.log_every else {}),
        )  # fmt: skip
        line = f"loss {loss:.3f}, ppl {ppl:.2f}, {rate:,.0f} tgt tokens/s"
        if self._bar.disable:
            target = f"/{self.config.max_steps}" if self.config.max_steps else ""
            epoch, eta = self._epoch + 1, self._eta()
            logger.info(
                "update %d%s, epoch %d, %s, lr %.2e, ETA %s",
                self._step,
                target,
                epoch,
                line,
                window.lr,
                eta,
            )
        else:
            self._bar.set_postfix_str(line)
        window.clear()
        self._time_window()

    def validated(
        self, step: int, scores: dict[str, float], improved: bool, bad_validations: int
    ) -> None:
        """Report a validation."""
        if self.metrics is None:
            return
        self.metrics.write(
            "valid", step, **scores, precision=self.precision, improved=improved, seconds=self.seconds(),
            valid_share=self._share("valid"),
        )  # fmt: skip
        text = ", ".join(
            f"{TITLES[name]} {value:.{3 if name == 'loss' else 2}f}"
            for name, value in scores.items()
        )
        verdict = (
            "best so far"
            if improved
            else f"no better {TITLES[self.config.metric]} for {bad_validations}"
        )
        share = f"validation took {self._share('valid'):.0%} of the time"
        took = format_seconds(self.seconds())
        logger.info(
            "valid update %d: %s in %s (%s) after %s; %s",
            step,
            text,
            self.precision,
            verdict,
            took,
            share,
        )

    def _share(self, what: str) -> float:
        return self._shares[what] / max(time.perf_counter() - self._began, 1e-9)

    def _eta(self) -> str:
        if self.config.max_steps is None:
            return "unknown"
        done = self._step - self._first_step
        return format_seconds(
            (self.config.max_steps - self._step)
            * (time.perf_counter() - self._began)
            / max(done, 1)
        )

    def close(self) -> None:
        """Report what is left, remove the bar and close `metrics`."""
        self.flush()
        self._bar.close()
        if self.metrics is not None:
            self.metrics.close()
