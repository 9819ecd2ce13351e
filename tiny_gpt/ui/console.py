"""What a person sees of a run: the guide's very lines, with a bar on a terminal and plain lines elsewhere."""

import contextlib
import signal
import time
from typing import Any, TextIO

from tqdm import tqdm

from tiny_gpt.config import RunConfig
from tiny_gpt.data.progress import Note, Progress
from tiny_gpt.duration import duration
from tiny_gpt.training.events import (
    EpochDone,
    Evaluated,
    Event,
    Finished,
    Prepared,
    Saved,
    SpeedMeasured,
    StepDone,
    SteppedBack,
    Stopping,
    Warned,
)
from tiny_gpt.ui.preparation import PreparationBar
from tiny_gpt.ui.terminal import check_mark, columns

BAR = "{desc}: {percentage:3.0f}%|{bar:3}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {speed}{postfix}]"
NARROW_BAR = "{desc}: {percentage:3.0f}% [{remaining} left, {speed}{postfix}]"
# The full bar with its four figures needs this many columns, and a few more where hours or losses are long.
WIDE = 126
LABEL = "{:<11}"
PATHS = {
    "plain": "torch's kernels",
    "fused": "fused kernels",
    "compiled": "compiled by torch",
    "captured": "compiled by torch and captured",
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
        self.bar: _EpochBar | None = None
        self._preparing = PreparationBar(stream)
        self._best: Saved | None = None
        self._epoch_started = time.perf_counter()

    def close(self) -> None:
        """Leave the terminal at the start of a line, whatever ended the run; never fails."""
        with contextlib.suppress(OSError, ValueError):
            self._preparing.close()
            self._close_bar()

    def consume(self, event: Event) -> None:
        match event:
            case Progress() | Note():
                self._preparing.consume(event)
            case Prepared():
                self._preparing.close()
                self._introduce(event)
                self._epoch_started = time.perf_counter()
                self._open_bar(event.steps_done)  # the first step may take long; a bar at 0% says that it is under way
            case StepDone():
                self._step(event)
            case SpeedMeasured():
                self._print(self._speed(event))
            case Evaluated():
                self._refresh(event)
            case EpochDone():
                self._close_bar()
                self._print(
                    f"Epoch {event.epoch}/{self.config.train.epochs} complete - "
                    f"Train: {event.train_loss:.4f}, Val: {event.val_loss:.4f}"
                )
                self._tell_best()
                self._epoch_started = time.perf_counter()
            case Saved(is_best=True):
                self._best = event
            case Saved():
                self._close_bar()
                self._tell_best()
                self._print(f"{self._check} Saved final model to {event.path}")
            case Warned():
                self._print(f"step {event.step:,}: {event.text}")
            case SteppedBack():
                self._close_bar()
                self._epoch_started = time.perf_counter()
            case Stopping():
                name = "Ctrl+C" if event.signal_number == signal.SIGINT else signal.Signals(event.signal_number).name
                self._print(f"{name}: the step is done; evaluating and saving. (Ctrl+C again ends at once.)")
            case Finished():
                self._finish(event)

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

    def _introduce(self, event: Prepared) -> None:
        model, train = event.model, self.config.train
        total_tokens = train.total_steps * event.tokens_per_step
        documents = f", {event.n_documents:,} documents" if event.n_documents > 1 else ""
        self._row("device", f"{event.device}, {event.precision}, {PATHS[event.path]}")
        if train.verbose:
            self._row("", event.why)
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
        self._row(
            "model",
            f"{model.architecture}, {event.n_parameters:,} parameters: {model.n_layer} layers, {model.n_head} heads, "
            f"width {model.d_model}, block {model.block_size}",
        )
        self._row(
            "training",
            f"{train.epochs} epochs of {train.iters_per_epoch} steps, {event.tokens_per_step:,} tokens a step: "
            f"{total_tokens:,} tokens, {total_tokens / event.train_tokens:.1f} times the text",
        )
        if event.steps_done:
            epoch = min(event.steps_done // train.iters_per_epoch + 1, train.epochs)
            self._row("going on", f"after step {event.steps_done:,} of {train.total_steps:,}, in epoch {epoch}")
        if event.earlier_run:
            self._row("kept", f"the earlier run's files are now in {event.earlier_run}")

    def _open_bar(self, steps_done: int) -> None:
        if not self.has_bars:
            return
        iters = self.config.train.iters_per_epoch
        self.bar = _EpochBar(
            desc=f"Epoch {steps_done // iters + 1}/{self.config.train.epochs}",
            total=iters,
            initial=steps_done % iters,
            bar_format=BAR if columns() >= WIDE else NARROW_BAR,
            file=self.stream,
        )
        self.bar.start_t -= time.perf_counter() - self._epoch_started  # the step that opened it counts too

    def _step(self, event: StepDone) -> None:
        if self.bar is None:
            self._open_bar(event.step - 1)
        if self.bar is None:
            return
        if event.batch_loss is not None and event.step == 1:
            self.bar.set_postfix_str(f"batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}", refresh=False)
        self.bar.update(1)

    def _speed(self, event: SpeedMeasured) -> str:
        end = time.localtime(time.time() + event.remaining_s)
        clock = time.strftime("%H:%M" if event.remaining_s < 20 * 3600 else "%A %H:%M", end)
        return LABEL.format("time") + (
            f"{event.tokens_per_s:,.0f} tokens/s: about {duration(event.remaining_s)} to go, until {clock}"
        )

    def _refresh(self, event: Evaluated) -> None:
        losses = f"train_loss={event.train_loss:.4f}, val_loss={event.val_loss:.4f}"
        details = f"{losses}, batch_loss={event.batch_loss:.4f}, lr={event.learning_rate:.1e}"
        if self.bar is not None:
            self.bar.set_postfix_str(details if self.bar.bar_format == BAR else losses)
            return
        iters = self.config.train.iters_per_epoch
        at = (event.step - 1) % iters + 1
        speed = _it_per_s(at / (time.perf_counter() - self._epoch_started))
        self._print(f"Epoch {event.epoch}/{self.config.train.epochs}: {at}/{iters} [{speed}, {details}]")

    def _close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _finish(self, event: Finished) -> None:
        self._close_bar()
        self._print("")
        self._row(
            "best model",
            f"epoch {event.best_epoch}, val_loss={event.best_val_loss:.4f} over {event.scored_tokens:,} validation "
            f"tokens, {event.best_val_bits_per_byte:.3f} bits per byte",
        )
        self._row(
            "took",
            f"{duration(event.elapsed_s)} for {event.last_step:,} steps, {event.eval_share:.0%} of it evaluating, "
            f"{event.save_share:.1%} saving; peak memory {event.peak_memory_bytes / 2**30:.2f} GiB",
        )
        for number, incident in enumerate(event.incidents[-MAX_INCIDENTS:]):
            self._row("met" if number == 0 else "", incident)
        if len(event.incidents) > MAX_INCIDENTS:
            self._row("", f"and {len(event.incidents) - MAX_INCIDENTS} more before that: train.log tells all")


class _EpochBar(tqdm):
    """tqdm with the speed in the guide's form, no padding, and never wider than the terminal is at the moment."""

    @property
    def format_dict(self) -> dict[str, Any]:
        values = super().format_dict
        rate = values["rate"] or (values["n"] - values["initial"]) / max(values["elapsed"], 1e-9)
        return {**values, "speed": _it_per_s(rate), "ncols": columns()}


def _it_per_s(rate: float) -> str:
    """2.4218 -> "2.42it/s", and 0.4 -> "2.50s/it"."""
    return f"{rate:.2f}it/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.2f}s/it"
