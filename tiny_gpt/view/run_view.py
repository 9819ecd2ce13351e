"""A run at one moment, put together from the files in its folder: in progress, finished, stopped, or dead."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from tiny_gpt.planning.types import Plan
from tiny_gpt.run.status import RunStatus
from tiny_gpt.view.axes import Values
from tiny_gpt.view.copied import CopiedText
from tiny_gpt.view.metrics_reader import MetricsReader
from tiny_gpt.view.run_files import (
    CheckpointNote,
    RunEvent,
    Sample,
)
from tiny_gpt.view.text_facts import TextFacts


@dataclass(frozen=True)
class PreviousRun:
    """The last run on the same text before this one."""

    name: str
    bits_per_byte: float


@dataclass(frozen=True)
class RunView:
    """All that is shown of a run. Losses are in bits per byte where names do not say otherwise."""

    name: str
    now: float
    state: str
    """preparing, training, paused, restarting, finished, stopped, failed or died."""
    status: RunStatus | None
    config: dict[str, Any]
    plan: Plan | None
    metrics: MetricsReader
    samples: list[Sample]
    events: list[RunEvent]
    checkpoint: CheckpointNote | None
    facts: TextFacts | None
    problems: list[str] = field(default_factory=list)
    """What is wrong with the files, a sentence each."""
    previous: PreviousRun | None = None
    copied: CopiedText | None = None

    # --- rows ---

    @property
    def n_rows(self) -> int:
        return self.metrics.n_rows

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed", "died")

    @cached_property
    def val(self) -> Values:
        """Validation loss."""
        return self.metrics.column("val_bits_per_byte")

    @cached_property
    def train(self) -> Values:
        """Training loss over the fixed windows."""
        return self.metrics.column("train_loss") * self._bits_per_nat(is_train=True)

    @cached_property
    def train_groups(self) -> tuple[Values, Values, Values]:
        """(mean, smallest, largest) training loss of each group of rows."""
        means, lows, highs = self.metrics.column_of_groups("train_loss")
        bits = self._bits_per_nat(is_train=True)
        return means * bits, lows * bits, highs * bits

    @cached_property
    def errors(self) -> Values:
        """Standard errors of `val`."""
        return self.metrics.column("val_loss_error") * self._bits_per_nat(is_train=False)

    def _bits_per_nat(self, is_train: bool) -> float:
        """Bits per byte for a loss of 1 nat per token: the tokens per byte of either text, divided by ln 2."""
        n_tokens = self.fact("train_tokens")
        if is_train and self.facts and n_tokens:
            return n_tokens / self.facts.train_bytes / math.log(2)
        ratios = self.val[-100:] / self.metrics.column("val_loss")[-100:]
        ratios = ratios[np.isfinite(ratios)]
        return float(np.median(ratios)) if len(ratios) else 1 / math.log(2)

    @cached_property
    def best(self) -> int | None:
        """The row with the lowest validation loss."""
        return int(np.nanargmin(self.val)) if np.isfinite(self.val).any() else None

    @cached_property
    def last(self) -> int | None:
        """The newest row with a validation loss."""
        found = np.flatnonzero(np.isfinite(self.val))
        return int(found[-1]) if len(found) else None

    @cached_property
    def stages(self) -> list[tuple[float, float, str]]:
        """(start, end, short name) of each stage, as time.time(); [] for a run that has only one."""
        begun = [event for event in self.events if event.kind == "stage"]
        if len(begun) < 2 or self.times is None:
            return []
        ends = [event.time for event in begun[1:]] + [float(self.times[-1])]
        return [(event.time, end, _stage_name(event.text)) for event, end in zip(begun, ends, strict=True)]

    @cached_property
    def first_of_stage(self) -> int:
        """The first row of the present stage: where it begins, the loss jumps."""
        begun = [event.step for event in self.events if event.kind == "stage" and event.step is not None]
        return int(np.count_nonzero(self.steps <= begun[-1])) if begun else 0

    @cached_property
    def gap(self) -> float | None:
        """How much lower the training loss is than the validation loss, as a fraction; at the last rows."""
        if self.last is None:
            return None
        rows = slice(max(0, self.last - 2), self.last + 1)
        train, val = float(np.nanmean(self.train[rows])), float(np.nanmean(self.val[rows]))
        return (val - train) / val if math.isfinite(train) and val > 0 else None

    # --- positions along the run ---

    @property
    def steps(self) -> Values:
        return self.metrics.column("step")

    @cached_property
    def times(self) -> Values | None:
        """When each row was written; None where that is not known."""
        times = self.metrics.column("time")
        is_known = (times > 1e9) & (times < 1e11)
        return times if len(times) and bool(is_known.all()) and bool((np.diff(times) >= 0).all()) else None

    @property
    def tokens_per_step(self) -> float:
        known = self.fact("tokens_per_step")
        batch, length = self.config.get("batch_size"), self.config.get("block_size")
        if not known and isinstance(batch, int) and isinstance(length, int):
            return float(batch * length)
        return known

    @property
    def data_epochs(self) -> float | None:
        """Passes over the person's own text so far; of each model, where several were pretrained."""
        n_tokens = self.fact("train_tokens")
        n_models = sum(event.kind == "stage" and event.text.startswith("your text") for event in self.events)
        n_steps = (self.step - self._pretraining_steps) / max(1, n_models)
        return n_steps * self.tokens_per_step / n_tokens if n_tokens and self.tokens_per_step else None

    @property
    def _pretraining_steps(self) -> float:
        """Steps on other text so far."""
        begun = [event for event in self.events if event.kind == "stage" and event.step is not None]
        ends = [*(float(event.step or 0) for event in begun[1:]), self.step]
        return sum(
            max(0.0, end - float(event.step or 0))
            for event, end in zip(begun, ends, strict=False)
            if event.text.startswith("pretraining")
        )

    @property
    def step(self) -> float:
        """Steps done."""
        last = float(self.steps[-1]) if self.n_rows else 0.0
        return max(last, float(self.status.step)) if self.status and not self.is_over else last

    def fact(self, name: str) -> float:
        """A number that the run's process or its checkpoint recorded; 0 if neither did."""
        for source in (self.status.facts if self.status else {}, self.checkpoint.data if self.checkpoint else {}):
            value = source.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e18:
                return float(value)
        return 0.0

    def words(self, name: str) -> str:
        """A text, or list of texts, that the run's process recorded; "" if it did not."""
        value = self.status.facts.get(name) if self.status else None
        if isinstance(value, list):
            return ", ".join(str(each) for each in value)[:500]
        return str(value)[:500] if isinstance(value, str) else ""

    @property
    def elapsed_s(self) -> float:
        """Seconds of training up to the last row."""
        return float(self.metrics.column("elapsed_s")[-1]) if self.n_rows else 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the run ends, from now; None if unknown or over."""
        if self.is_over or self.status is None:
            return None
        if self.status.left_s is not None:
            return max(0.0, self.status.left_s - (self.now - self.status.updated))
        total, speed = self.fact("total_steps"), self.status.tokens_per_s
        if total and speed > 0 and self.tokens_per_step:
            done_at = self.status.updated + (total - self.status.step) * self.tokens_per_step / speed
            return max(0.0, done_at - self.now)
        return None

    @property
    def progress(self) -> float:
        """0 to 1 of the budget."""
        if self.state == "finished":
            return 1.0
        return min(1.0, max(0.0, self.status.progress)) if self.status else 0.0

    @cached_property
    def idle(self) -> list[tuple[float, float]]:
        """(from, to) of the times between rows in which nothing was trained: asleep, paused or not running."""
        if self.times is None:
            return []
        waited = np.diff(self.times) - np.diff(self.metrics.column("elapsed_s"))
        found = []
        for row in np.flatnonzero(waited > 60).tolist():
            start, end = float(self.times[row]), float(self.times[row + 1])
            resumes = [event.time for event in self.events if event.kind == "resume" and start < event.time <= end]
            until = max(resumes, default=end)
            found.append((max(start, until - float(waited[row])), until))
        return found


def _stage_name(text: str) -> str:
    """ "pretraining 2 of 3 on ..." -> "other text 2", "teacher 2 of 8: ..." -> "teacher 2", "your text: ..." ->
    "your text"."""
    if text.startswith("pretraining"):
        return text.split(" on ", 1)[0].split(" of ", 1)[0].replace("pretraining", "other text")
    return text.split(":", 1)[0].split(" of ", 1)[0]
