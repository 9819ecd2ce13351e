"""The console output of a run: the guide's lines, with progress bars on a terminal and plain lines elsewhere."""

import contextlib
import math
import signal
import time
from typing import Any, TextIO

from tqdm import tqdm

from tiny_gpt.config import LOG_FILE, RunConfig, flag
from tiny_gpt.data.progress import Measuring, Notice, StageProgress
from tiny_gpt.duration import clock_time_in, format_duration
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.events import (
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Merged,
    Prepared,
    RolledBack,
    Saved,
    StageBegun,
    StepDone,
    Stopping,
    ThroughputMeasured,
    Warned,
)
from tiny_gpt.ui.plan_report import (
    describe_model,
    describe_training,
    forecast_rows,
    forecast_versus_actual,
    plan_rows,
)
from tiny_gpt.ui.preparation import PreparationBar
from tiny_gpt.ui.terminal import check_mark, columns, printable, row, wrapped

# The guide's bar. A run with a time budget has the time left instead of steps; narrow terminals get no bar graphic.
BAR = "{desc}: {percentage:3.0f}%|{bar:3}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]"
NARROW_BAR = "{desc}: {percentage:3.0f}% [{remaining} left, {speed}{postfix}]"
TIMED_BAR = "{desc}: {percentage:3.0f}%|{bar:3}| {left} left [{elapsed}, {speed}{postfix}]"
NARROW_TIMED_BAR = "{desc}: {percentage:3.0f}% [{left} left, {speed}{postfix}]"
# Resolution of a bar that shows progress along a time budget instead of steps.
PROGRESS_UNITS = 10_000
# Columns that the full bar with its four values needs, and a few more for long times or losses.
WIDE = 126
BACKEND_DESCRIPTIONS = {
    "eager": "PyTorch kernels",
    "fused": "fused kernels",
    "compiled": "torch.compile",
    "cuda_graph": "CUDA graph",
}
# Notes about the text that are printed before training; `tiny-gpt data` shows all.
MAX_PRINTED_NOTES = 4
# Lines of each new sample that a terminal shows while the model trains.
SHOWN_SAMPLE_LINES = 2
# Incidents that are printed at the end; train.log has all.
MAX_PRINTED_INCIDENTS = 8


class Console:
    """Consumes a run's events and prints them to `stream`."""

    def __init__(self, config: RunConfig, stream: TextIO) -> None:
        self.config, self.stream = config, stream
        self.has_bars = stream.isatty()
        self._is_brief = self.has_bars and not config.train.verbose
        """Whether a person reads along who has not asked for all figures; train.log has them."""
        self.bar: _Bar | None = None
        self._preparation_bar = PreparationBar(stream)
        self._unprinted_best: Saved | None = None
        self._plan: Plan | None = None
        self._total_steps = config.train.total_steps
        self._tokens_per_step = 0
        self._bits_per_nat = 0.0
        """Bits per byte for a validation loss of one nat per token."""
        self._last_step = StepDone(0, None, 0.0)
        self._restart_timer(0)

    def close(self) -> None:
        """Leave the cursor at the start of a line, whatever ended the run; never fails."""
        with contextlib.suppress(OSError, ValueError):
            self._preparation_bar.close()
            self._close_bar()

    def consume(self, event: Event) -> None:
        match event:
            case StageProgress() | Notice() | Measuring():
                self._preparation_bar.consume(event)
            case Prepared():
                self._preparation_bar.close()
                self._print_setup(event)
                self._restart_timer(event.steps_done)
                self._open_bar(event.steps_done)  # the first step may take long; a bar at 0% shows that it has started
            case StageBegun():
                self._print(self._wrapped(f"step {event.step:,}: {event.description}"))
            case Merged():
                self._print(self._wrapped(f"step {event.step:,}: {event.text}"))
            case StepDone():
                self._update_bar(event)
            case ThroughputMeasured() if self._is_brief and self.config.train.is_timed:
                pass  # the bar shows the time left
            case ThroughputMeasured():
                self._print_row(
                    "time",
                    f"{event.tokens_per_s:,.0f} tokens/s: about {format_duration(event.remaining_s)} left, "
                    f"until {clock_time_in(event.remaining_s)}",
                )
            case Evaluated():
                self._show_losses(event)
            case EpochDone():
                self._close_bar()
                self._print(
                    f"Epoch {event.epoch}/{self._n_epochs} complete - "
                    f"Train: {event.train_loss:.4f}, Val: {event.val_loss:.4f}"
                )
                self._print_best()
                self._restart_timer(self._last_step.step)
            case Saved(is_best=True):
                self._unprinted_best = event
            case Saved():
                self._close_bar()
                self._print_best()
                self._print(f"{check_mark(self.stream)} Saved final model to {event.path}")
            case Warned():
                self._print(self._wrapped(f"step {event.step:,}: {event.text}"))
            case RolledBack():
                self._close_bar()
                self._restart_timer(event.step)
            case Stopping():
                name = "Ctrl+C" if event.signal_number == signal.SIGINT else signal.Signals(event.signal_number).name
                self._print(f"{name}: step finished; evaluating and saving. (Ctrl+C again stops at once.)")
            case Finished():
                self._close_bar()
                self._print_results(event)

    @property
    def _n_epochs(self) -> int:
        return math.ceil(self._total_steps / self.config.train.iters_per_epoch)

    def _restart_timer(self, step: int) -> None:
        """From now on, speeds are averages since `step`, which is done."""
        self._timer_step, self._timer_start = step, time.perf_counter()

    # Lines

    def _print(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        tqdm.write(text, file=self.stream)
        self.stream.flush()

    def _wrapped(self, text: str) -> str:
        return wrapped(text, columns()) if self.has_bars else text

    def _print_row(self, label: str, text: str) -> None:
        """A labeled line, wrapped between words on a terminal; a file or pipe gets one line."""
        self._print(row(label, text, columns() if self.has_bars else None))

    def _print_best(self) -> None:
        """The best model saved since the last call: one line per epoch, however often it improved."""
        if self._unprinted_best is not None:
            loss, path = self._unprinted_best.val_loss, self._unprinted_best.path
            quality = f"val_loss={loss:.4f}"
            if self.config.train.is_timed and self._bits_per_nat:
                quality = f"{self._bits_per_nat * loss:.3f} bits per byte"
            self._print(f"{check_mark(self.stream)} Saved best model ({quality}) to {path}")
            self._unprinted_best = None

    def _print_setup(self, event: Prepared) -> None:
        """What is about to be trained, on which text, and for how long."""
        self._total_steps = event.total_steps or self._total_steps
        self._tokens_per_step, self._plan = event.tokens_per_step, event.plan
        if self._is_brief:
            self._print_brief_setup(event)
        else:
            self._print_full_setup(event)
        if event.steps_done and self.config.train.is_timed:
            self._print_row("resumed", f"after step {event.steps_done:,}")
        elif event.steps_done:
            epoch = min(event.steps_done // self.config.train.iters_per_epoch + 1, self._n_epochs)
            self._print_row("resumed", f"after step {event.steps_done:,} of {self._total_steps:,}, in epoch {epoch}")
        if event.earlier_run:
            self._print_row("moved", f"files of the earlier run to {event.earlier_run}")

    def _print_brief_setup(self, event: Prepared) -> None:
        """Which text, until when, how good."""
        self._print_text(event)
        self._print_row("training", f"{self._describe_budget(event)}; {event.n_parameters:,} parameters")
        if event.plan is not None:
            for label, text in forecast_rows(event.plan):
                self._print_row(label, text)
        self._print_row("", f"(all settings: --verbose, or {LOG_FILE} in the folder of the run)")

    def _print_full_setup(self, event: Prepared) -> None:
        self._print_row("device", f"{event.device}, {event.precision}, {BACKEND_DESCRIPTIONS[event.backend]}")
        if self.config.train.verbose:
            self._print_row("", event.backend_reason)
        self._print_text(event)
        self._print_tokens(event)
        self._print_row("model", describe_model(event.model, f"{event.n_parameters:,}"))
        self._print_row("training", self._describe_budget(event))
        self._print_row("", describe_training(event.model, event.train))
        if event.plan is not None:
            for label, text in plan_rows(event.plan):
                self._print_row(label, text)

    def _print_text(self, event: Prepared) -> None:
        documents = f", {event.n_documents:,} documents" if event.n_documents > 1 else ""
        self._print_row("text", f"{', '.join(event.sources)}: {event.n_characters:,} characters{documents}")
        for note in event.notes[:MAX_PRINTED_NOTES]:
            self._print_row("", note)
        if len(event.notes) > MAX_PRINTED_NOTES:
            self._print_row("", f"and {len(event.notes) - MAX_PRINTED_NOTES:,} more notes: see tiny-gpt data")

    def _print_tokens(self, event: Prepared) -> None:
        self._print_row(
            "tokens", f"{event.tokenizer}, vocabulary {event.vocab_size:,}: {event.train_tokens:,} training tokens"
        )
        # The last token of the text has no target, so it is never scored.
        scores_all = event.val_tokens_scored >= event.val_tokens - 1
        scored = "all" if scores_all else f"{event.val_tokens_scored:,}"
        self._print_row("", f"{event.val_tokens:,} validation tokens, {scored} scored at each evaluation")

    def _describe_budget(self, event: Prepared) -> str:
        """Examples: "80 epochs of 400 steps, ..." and "until 22:10, 5 min 00 s from now (--for 5m); ..."."""
        train = self.config.train
        per_step = "" if self._is_brief else f"{event.tokens_per_step:,} tokens per step"
        if event.left_s is not None:
            left = format_duration(max(0.0, event.left_s))
            until = f"until {clock_time_in(event.left_s)}, {left} from now ({self._budget_flag})"
            return f"{until}; {per_step}" if per_step else until
        n_tokens = self._total_steps * event.tokens_per_step
        has_whole_epochs = self._total_steps % train.iters_per_epoch == 0
        steps = (
            f"{self._n_epochs} epochs of {train.iters_per_epoch} steps"
            if has_whole_epochs
            else f"{self._total_steps:,} steps"
        )
        if not per_step:
            return steps
        return f"{steps}, {per_step}: {n_tokens:,} tokens, {n_tokens / event.train_tokens:.1f} passes over the text"

    @property
    def _budget_flag(self) -> str:
        train = self.config.train
        return f"{flag(train.budget)} {getattr(train, train.budget)}"

    def _print_results(self, event: Finished) -> None:
        self._print("")
        is_timed = event.left_s is not None
        at = f"step {event.best_step:,}" if is_timed else f"epoch {event.best_epoch}"
        loss = f"val_loss={event.best_val_loss:.4f} over {event.scored_tokens:,} validation tokens, "
        if self._is_brief and is_timed:
            loss = ""
        self._print_row("best model", f"{at}, {loss}{event.best_val_bits_per_byte:.3f} bits per byte")
        if event.forgetting:
            self._print_row("forgotten", event.forgetting)
        took = f"{format_duration(event.elapsed_s)} for {event.last_step:,} steps"
        details = (
            f"{event.eval_share:.0%} of it evaluating, {event.save_share:.1%} saving; peak memory "
            f"{event.peak_memory_bytes / 2**30:.2f} GiB"
        )
        self._print_row("took", took if self._is_brief else f"{took}, {details}")
        if event.left_s is not None and event.stopped_by is None:
            early = "early" if event.left_s > 0 else "late"
            self._print_row("budget", f"{self._budget_flag}: ended {format_duration(abs(event.left_s))} {early}")
        if self._plan is not None and event.stopped_by is None and not self._is_brief:
            n_tokens, reached = event.last_step * self._tokens_per_step, event.best_val_bits_per_byte
            words = forecast_versus_actual(self._plan, n_tokens, reached, event.peak_memory_bytes, is_timed)
            self._print_row("plan", words)
        for index, incident in enumerate(event.incidents[-MAX_PRINTED_INCIDENTS:]):
            self._print_row("" if index else "incidents", incident)
        if len(event.incidents) > MAX_PRINTED_INCIDENTS:
            self._print_row("", f"and {len(event.incidents) - MAX_PRINTED_INCIDENTS} earlier ones: see train.log")

    def show_sample(self, step: int, text: str) -> None:
        """The first lines of what a better model writes, while it trains, on a terminal."""
        if not self.has_bars or self.bar is None:
            return
        width = max(1, columns() - 4)
        lines = [line.strip()[:width] for line in printable(text).splitlines() if line.strip()][:SHOWN_SAMPLE_LINES]
        self._print("\n".join([f"step {step:,} writes:", *(f"  | {line}" for line in lines)]))

    # The bar, and its lines where there is no terminal

    def _open_bar(self, steps_done: int) -> None:
        if not self.has_bars:
            return
        is_wide = columns() >= WIDE
        if self.config.train.is_timed:
            self.bar = _Bar(
                desc="Training",
                total=PROGRESS_UNITS,
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
        self.bar.start_t -= time.perf_counter() - self._timer_start  # include the step after which the bar opened

    def _update_bar(self, event: StepDone) -> None:
        self._last_step = event
        if self.bar is None:
            self._open_bar(event.step - 1)
        if self.bar is None:
            return
        if event.batch_loss is not None and event.step == 1 and event.left_s is None:
            self.bar.set_postfix_str(f"batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}", refresh=False)
        if event.left_s is None:
            self.bar.update(1)
        else:
            self.bar.left_s, self.bar.n_steps = event.left_s, event.step - self._timer_step
            self.bar.update(round(event.progress * PROGRESS_UNITS) - self.bar.n)

    def _show_losses(self, event: Evaluated) -> None:
        losses = f"train_loss={event.train_loss:.4f}, val_loss={event.val_loss:.4f}"
        self._bits_per_nat = event.val_bits_per_byte / event.val_loss if event.val_loss else 0.0
        if self.config.train.is_timed and self.bar is not None:  # one unit for people; train.log has both
            losses = f"{event.val_bits_per_byte:.3f} bits per byte"
        details = f"{losses}, batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}"
        if self.bar is not None:
            self.bar.set_postfix_str(details if self.bar.bar_format in (BAR, TIMED_BAR) else losses)
            return
        elapsed_s = time.perf_counter() - self._timer_start
        speed = _format_rate((event.step - self._timer_step) / elapsed_s)
        left_s = self._last_step.left_s
        if left_s is not None:
            left = f"{format_duration(max(0.0, left_s))} left"
            self._print(f"{self._last_step.progress:4.0%}, step {event.step:,}: {left} [{speed}, {details}]")
            return
        iters = self.config.train.iters_per_epoch
        step_in_epoch = (event.step - 1) % iters + 1
        epoch_steps = min(iters, self._total_steps - (event.step - step_in_epoch))
        self._print(f"Epoch {event.epoch}/{self._n_epochs}: {step_in_epoch}/{epoch_steps} [{speed}, {details}]")

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class _Bar(tqdm):
    """tqdm with the speed in the guide's form, without padding, and never wider than the terminal is now.

    With a time budget the bar counts progress instead of steps; then `n_steps` (since the bar opened) and `left_s`
    (seconds) have to be set.
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
        return {**values, "speed": _format_rate(rate), "left": left, "ncols": columns()}


def _format_rate(rate: float) -> str:
    """2.4218 -> "2.42it/s", and 0.4 -> "2.50s/it"."""
    return f"{rate:.2f}it/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.2f}s/it"
