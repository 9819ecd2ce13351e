"""Progress of a run that a Python program drives: a display that updates in a notebook, lines in a terminal or file."""

import contextlib
import html
import sys
import time
from collections.abc import Iterator
from typing import Any

from tiny_gpt.config import RunConfig
from tiny_gpt.data.progress import Measuring, Notice, StageProgress
from tiny_gpt.duration import format_duration
from tiny_gpt.run.events import Evaluated, Event, Finished, Prepared, RolledBack, StepDone, Stopping, Warned
from tiny_gpt.ui.console import Console
from tiny_gpt.ui.consumers import Consumer

UPDATE_INTERVAL_S = 0.5
# The curve, in pixels.
WIDTH, HEIGHT = 420, 90


@contextlib.contextmanager
def progress_display(config: RunConfig, is_wanted: bool) -> Iterator[list[Consumer]]:
    """The consumers that show a run where this program runs."""
    if not is_wanted:
        yield []
    elif (display := notebook_display()) is not None:
        yield [NotebookProgress(display)]
    else:
        with contextlib.closing(Console(config, sys.stdout)) as console:
            yield [console]


def notebook_display() -> Any:
    """IPython's `display` in a notebook, None elsewhere. IPython is not imported unless it runs already."""
    if (ipython := sys.modules.get("IPython")) is None:
        return None
    shell = ipython.get_ipython()
    return sys.modules["IPython.display"].display if shell is not None and hasattr(shell, "kernel") else None


class NotebookProgress:
    """Consumes a run's events; shows a bar, the losses, their curve and what went wrong."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._shown_at = 0.0
        self._head, self._bar, self._left = "Preparing", 0.0, ""
        self._total_steps = 0
        self._rows: list[Evaluated] = []
        self._notes: list[str] = []

    def consume(self, event: Event) -> None:
        match event:
            case StageProgress():
                self._head = event.stage.capitalize()
                self._bar = event.done_bytes / event.total_bytes if event.total_bytes else 0.0
            case Measuring():
                self._head, self._bar = f"Measuring {event.what}", event.fraction
            case Notice():
                self._notes = [event.text]
            case Prepared():
                self._head, self._bar, self._notes = "Training", 0.0, event.notes[:3]
                self._rows, self._total_steps = list(event.history), event.total_steps
            case StepDone():
                self._bar = event.step / self._total_steps if event.left_s is None else event.progress
                self._left = "" if event.left_s is None else f", {format_duration(max(0, event.left_s))} left"
                self._head = f"Step {event.step:,}"
            case Evaluated():
                self._rows.append(event)
            case RolledBack():
                self._rows = list(event.history)
            case Warned():
                self._notes = [*self._notes[-4:], event.text]
            case Stopping():
                self._head = "Stopping: evaluating and saving"
            case Finished():
                self._finish(event)
        self._show(now=isinstance(event, Prepared | Evaluated | Stopping | Finished))

    def _finish(self, event: Finished) -> None:
        state = "Finished" if event.stopped_by is None else "Stopped and saved"
        self._head = f"{state} after {format_duration(event.elapsed_s)}: best {event.best_val_bits_per_byte:.3f} bits "
        self._head += f"per byte at step {event.best_step:,}"
        self._left = ""
        self._bar = 1.0 if event.stopped_by is None else self._bar

    def _show(self, now: bool) -> None:
        if not now and time.monotonic() - self._shown_at < UPDATE_INTERVAL_S:
            return
        self._shown_at = time.monotonic()
        content = {"text/html": self.html(), "text/plain": f"{self._head}{self._left}"}
        if self._handle is None:
            self._handle = self._display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)

    def html(self) -> str:
        """The display as HTML; colors are those of the notebook's theme."""
        parts = [f"<div><b>{html.escape(self._head)}</b>{html.escape(self._left)}</div>"]
        parts.append(f'<progress max="1" value="{self._bar:.4f}" style="width:{WIDTH}px"></progress>')
        if self._rows:
            last, best = self._rows[-1], min(self._rows, key=lambda row: row.val_loss)
            parts.append(
                f"<div>bits per byte <b>{last.val_bits_per_byte:.3f}</b>, best {best.val_bits_per_byte:.3f} at step "
                f"{best.step:,}; training loss {last.train_loss:.3f}, validation loss {last.val_loss:.3f} nats per "
                f"token; {last.tokens_per_s:,.0f} tokens/s</div>"
            )
            parts.append(curve([row.val_bits_per_byte for row in self._rows]))
        parts += [f"<div><small>{html.escape(note)}</small></div>" for note in self._notes]
        return "".join(parts)


def curve(values: list[float]) -> str:
    """A line over the evaluations as SVG; "" for fewer than two."""
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    points = " ".join(
        f"{4 + (WIDTH - 8) * i / (len(values) - 1):.1f},{4 + (HEIGHT - 8) * (high - value) / ((high - low) or 1):.1f}"
        for i, value in enumerate(values)
    )
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="validation loss from {values[0]:.2f} to '
        f'{values[-1]:.2f} bits per byte"><polyline points="{points}" fill="none" stroke="currentColor" '
        f'stroke-width="1.5"/></svg>'
    )
