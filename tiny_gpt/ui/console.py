"""What a person sees of a run: the guide's very lines, with a bar on a terminal and plain lines elsewhere."""

import contextlib
import math
import signal
import time
from typing import Any, TextIO

from tqdm import tqdm

from tiny_gpt.config import RunConfig, flag
from tiny_gpt.data.progress import Notice, StageProgress
from tiny_gpt.duration import clock_time_in, format_duration
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.events import (
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Prepared,
    RolledBack,
    Saved,
    StepDone,
    Stopping,
    ThroughputMeasured,
    Warned,
)
from tiny_gpt.ui.plan_report import describe_model, describe_training, forecast_versus_actual, plan_rows
from tiny_gpt.ui.preparation import PreparationBar
from tiny_gpt.ui.terminal import LABEL, check_mark, columns

BAR = "{desc}: {percentage:3.0f}%|{bar:3}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]"
TIMED_BAR = "{desc}: {percentage:3.0f}%|{bar:3}| {left} to go [{elapsed}, {speed}{postfix}]"
NARROW_TIMED_BAR = "{desc}: {percentage:3.0f}% [{left} to go, {speed}{postfix}]"
# A bar of progress has so many parts.
PROGRESS_PARTS = 10_000
NARROW_BAR = "{desc}: {percentage:3.0f}% [{remaining} left, {speed}{postfix}]"
# The full bar with its four figures needs this many columns, and a few more where hours or losses are long.
WIDE = 126
BACKENDS = {
    "eager": "torch's kernels",
    "fused": "fused kernels",
    "compiled": "compiled by torch",
    "cuda_graph": "torch's kernels, recorded",
}
# Lines about the text before the others are left to tiny-gpt data.
MAX_NOTES = 4
# What the run has met, in its last lines.
MAX_INCIDENTS = 8


class Console:
    """Consumes a run's events onto `stream`."""

    def __init__(self, config: RunConfig, stream: TextIO) -> None:
        self.config, self.stream = config, stream
        self.has_bars = stream.isatty()
        self.bar: _Bar | None = None
        self._preparing = PreparationBar(stream)
        self._best: Saved | None = None
        self._plan: Plan | None = None
        self._total_steps = config.train.total_steps
        self._counted_from = self._tokens_per_step = 0
        self._last_step = StepDone(0, None, 0.0)
        self._counted_since = time.perf_counter()

    def close(self) -> None:
        """Leave the terminal at the start of a line, whatever ended the run; never fails."""
        with contextlib.suppress(OSError, ValueError):
            self._preparing.close()
            self._close_bar()

    def consume(self, event: Event) -> None:
        match event:
            case StageProgress() | Notice():
                self._preparing.consume(event)
            case Prepared():
                self._preparing.close()
                self._total_steps = event.total_steps or self._total_steps
                self._tokens_per_step = event.tokens_per_step
                self._introduce(event)
                self._count_from(event.steps_done)
                self._open_bar(event.steps_done)  # the first step may take long; a bar at 0% says that it is under way
            case StepDone():
                self._step(event)
            case ThroughputMeasured():
                self._print(self._speed(event))
            case Evaluated():
                self._refresh(event)
            case EpochDone():
                self._close_bar()
                self._print(
                    f"Epoch {event.epoch}/{self._n_epochs} complete - "
                    f"Train: {event.train_loss:.4f}, Val: {event.val_loss:.4f}"
                )
                self._tell_best()
                self._count_from(self._last_step.step)
            case Saved(is_best=True):
                self._best = event
            case Saved():
                self._close_bar()
                self._tell_best()
                self._print(f"{self._check} Saved final model to {event.path}")
            case Warned():
                self._print(f"step {event.step:,}: {event.text}")
            case RolledBack():
                self._close_bar()
                self._count_from(event.step)
            case Stopping():
                name = "Ctrl+C" if event.signal_number == signal.SIGINT else signal.Signals(event.signal_number).name
                self._print(f"{name}: the step is done; evaluating and saving. (Ctrl+C again ends at once.)")
            case Finished():
                self._finish(event)

    def _count_from(self, step: int) -> None:
        """Speeds are those since `step`, which is done."""
        self._counted_from, self._counted_since = step, time.perf_counter()

    def _tell_best(self) -> None:
        """Name the best model saved since this was last told: one line an epoch, however often it improved."""
        if self._best is not None:
            self._print(f"{self._check} Saved best model (val_loss={self._best.val_loss:.4f}) to {self._best.path}")
            self._best = None

    @property
    def _check(self) -> str:
        return check_mark(self.stream)

    def _print(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        tqdm.write(text, file=self.stream)
        self.stream.flush()

    def _row(self, label: str, text: str) -> None:
        self._print(LABEL.format(label) + text)

    @property
    def _n_epochs(self) -> int:
        return math.ceil(self._total_steps / self.config.train.iters_per_epoch)

    def _introduce(self, event: Prepared) -> None:
        train = self.config.train
        documents = f", {event.n_documents:,} documents" if event.n_documents > 1 else ""
        self._row("device", f"{event.device}, {event.precision}, {BACKENDS[event.backend]}")
        if train.verbose:
            self._row("", event.backend_reason)
        self._row("text", f"{', '.join(event.sources)}: {event.n_characters:,} characters{documents}")
        for note in event.notes[:MAX_NOTES]:
            self._row("", note)
        if len(event.notes) > MAX_NOTES:
            self._row("", f"and {len(event.notes) - MAX_NOTES:,} more such lines: tiny-gpt data shows them")
        self._row(
            "tokens",
            f"{event.tokenizer}, vocabulary {event.vocab_size:,}: {event.train_tokens:,} to learn from",
        )
        share = "all" if event.val_tokens_scored >= event.val_tokens - 1 else f"{event.val_tokens_scored:,} fixed ones"
        self._row("", f"{event.val_tokens:,} held out for validation, {share} of them scored each time")
        self._row("model", describe_model(event.model, f"{event.n_parameters:,}"))
        self._row("training", self._budget(event))
        self._row("", describe_training(event.model, event.train))
        if event.plan is not None:
            self._plan = event.plan
            for label, text in plan_rows(event.plan):
                self._row(label, text)
        if event.steps_done and train.is_timed:
            self._row("going on", f"after step {event.steps_done:,}")
        elif event.steps_done:
            epoch = min(event.steps_done // train.iters_per_epoch + 1, self._n_epochs)
            self._row("going on", f"after step {event.steps_done:,} of {self._total_steps:,}, in epoch {epoch}")
        if event.earlier_run:
            self._row("kept", f"the earlier run's files are now in {event.earlier_run}")

    def _budget(self, event: Prepared) -> str:
        """80 epochs of 400 steps ..., or for 5 min 00 s, until 22:10 ..."""
        train, a_step = self.config.train, f"{event.tokens_per_step:,} tokens a step"
        if event.left_s is not None:
            given = f"{flag(train.budget)} {getattr(train, train.budget)}"
            left = format_duration(max(0.0, event.left_s))
            return f"until {clock_time_in(event.left_s)}, {left} from now ({given}); {a_step}"
        total_tokens = self._total_steps * event.tokens_per_step
        iters = train.iters_per_epoch
        steps = (
            f"{self._total_steps:,} steps" if self._total_steps % iters else f"{self._n_epochs} epochs of {iters} steps"
        )
        times = total_tokens / event.train_tokens
        return f"{steps}, {a_step}: {total_tokens:,} tokens, {times:.1f} times the text"

    def _open_bar(self, steps_done: int) -> None:
        if not self.has_bars:
            return
        is_wide = columns() >= WIDE
        if self.config.train.is_timed:
            self.bar = _Bar(
                desc="Training",
                total=PROGRESS_PARTS,
                bar_format=TIMED_BAR if is_wide else NARROW_TIMED_BAR,
                file=self.stream,
            )
            return
        iters = self.config.train.iters_per_epoch
        epoch_start = steps_done // iters * iters
        self.bar = _Bar(
            desc=f"Epoch {steps_done // iters + 1}/{self._n_epochs}",
            total=min(iters, max(1, self._total_steps - epoch_start)),
            initial=steps_done % iters,
            bar_format=BAR if is_wide else NARROW_BAR,
            file=self.stream,
        )
        self.bar.start_t -= time.perf_counter() - self._counted_since  # the step that opened it counts too

    def _step(self, event: StepDone) -> None:
        self._last_step = event
        if self.bar is None:
            self._open_bar(event.step - 1)
        if self.bar is None:
            return
        if event.batch_loss is not None and event.step == 1:
            self.bar.set_postfix_str(f"batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}", refresh=False)
        if event.left_s is None:
            self.bar.update(1)
        else:
            self.bar.left_s, self.bar.n_steps = event.left_s, event.step - self._counted_from
            self.bar.update(round(event.progress * PROGRESS_PARTS) - self.bar.n)

    def _speed(self, event: ThroughputMeasured) -> str:
        return LABEL.format("time") + (
            f"{event.tokens_per_s:,.0f} tokens/s: about {format_duration(event.remaining_s)} to go, "
            f"until {clock_time_in(event.remaining_s)}"
        )

    def _refresh(self, event: Evaluated) -> None:
        losses = f"train_loss={event.train_loss:.4f}, val_loss={event.val_loss:.4f}"
        details = f"{losses}, batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}"
        if self.bar is not None:
            self.bar.set_postfix_str(details if self.bar.bar_format in (BAR, TIMED_BAR) else losses)
            return
        elapsed_s = time.perf_counter() - self._counted_since
        left_s, iters = self._last_step.left_s, self.config.train.iters_per_epoch
        speed = _it_per_s((event.step - self._counted_from) / elapsed_s)
        if left_s is not None:
            left = f"{format_duration(max(0.0, left_s))} to go"
            self._print(f"{self._last_step.progress:4.0%}, step {event.step:,}: {left} [{speed}, {details}]")
            return
        at = (event.step - 1) % iters + 1
        whole = min(iters, self._total_steps - (event.step - at))
        self._print(f"Epoch {event.epoch}/{self._n_epochs}: {at}/{whole} [{speed}, {details}]")

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _finish(self, event: Finished) -> None:
        self._close_bar()
        self._print("")
        is_timed = event.left_s is not None
        at = f"step {event.best_step:,}" if is_timed else f"epoch {event.best_epoch}"
        self._row(
            "best model",
            f"{at}, val_loss={event.best_val_loss:.4f} over {event.scored_tokens:,} validation "
            f"tokens, {event.best_val_bits_per_byte:.3f} bits per byte",
        )
        self._row(
            "took",
            f"{format_duration(event.elapsed_s)} for {event.last_step:,} steps, {event.eval_share:.0%} of it evaluating"
            f", {event.save_share:.1%} saving; peak memory {event.peak_memory_bytes / 2**30:.2f} GiB",
        )
        if event.left_s is not None and event.stopped_by is None:
            train = self.config.train
            early = "before" if event.left_s > 0 else "after"
            asked = f"{flag(train.budget)} {getattr(train, train.budget)}"
            self._row("asked", f"{asked}: this is {format_duration(abs(event.left_s))} {early} its end")
        if self._plan is not None and event.stopped_by is None:
            n_tokens = event.last_step * self._tokens_per_step
            self._row(
                "planned",
                forecast_versus_actual(self._plan, n_tokens, event.best_val_bits_per_byte, event.peak_memory_bytes),
            )
        for number, incident in enumerate(event.incidents[-MAX_INCIDENTS:]):
            self._row("met" if number == 0 else "", incident)
        if len(event.incidents) > MAX_INCIDENTS:
            self._row("", f"and {len(event.incidents) - MAX_INCIDENTS} more before that: train.log tells all")


class _Bar(tqdm):
    """tqdm with the speed in the guide's form, no padding, and never wider than the terminal is at the moment.

    Where a clock ends the run it counts progress, and is told the steps since its beginning and the seconds left.
    """

    n_steps: int | None = None
    left_s = 0.0

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        elapsed_s = max(values["elapsed"], 1e-9)
        rate = values["rate"] or (values["n"] - values["initial"]) / elapsed_s
        rate = rate if self.n_steps is None else self.n_steps / elapsed_s
        left = format_duration(max(0.0, self.left_s))
        return {**values, "speed": _it_per_s(rate), "left": left, "ncols": columns()}


def _it_per_s(rate: float) -> str:
    """2.4218 -> "2.42it/s", and 0.4 -> "2.50s/it"."""
    return f"{rate:.2f}it/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.2f}s/it"
