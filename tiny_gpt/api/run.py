"""A run in a Python program: trained here, or opened from its folder.

>>> run = tiny_gpt.Run("my_book")
>>> run.metrics["val_bits_per_byte"].min()
>>> run.best_model.generate("Once")
"""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiny_gpt.api.model import Model, load
from tiny_gpt.api.settings import with_settings
from tiny_gpt.config import (
    BEST_FILE,
    BUDGETS,
    CONFIG_FILE,
    FINAL_FILE,
    METRICS_FILE,
    RunConfig,
    load_config,
)
from tiny_gpt.errors import UsageError
from tiny_gpt.files import user_path
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.planning.types import Plan
from tiny_gpt.run.events import Evaluated, Event, Finished
from tiny_gpt.run.folders import config_of, find_run, unfinished
from tiny_gpt.run.plan_file import read_saved_plan
from tiny_gpt.run.summary import RunState, RunSummary, summarize_run
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.consumers import Consumer, RecordedRun
from tiny_gpt.ui.progress import progress_display
from tiny_gpt.view.report import write_report
from tiny_gpt.view.run_files import Sample, read_samples

Callback = Callable[[Event], object]


@dataclass(frozen=True)
class PendingTraining:
    """What is still to be trained."""

    config: RunConfig
    is_resumed: bool
    request: RunRequest
    callbacks: Sequence[Callback]
    progress: bool


class Run:
    """A run and its folder. What it knows is read from there each time, so it is also right while the run trains.

    A run that was made with `wait=False` trains while it is iterated over, or in `wait()`:

    >>> for event in tiny_gpt.train("my_book.txt", hours=1, wait=False): print(event)
    """

    def __init__(self, name: str | Path) -> None:
        """The run `name`: a folder, or a name below runs/. Raises BadInputError if there is none."""
        self.folder = find_run(str(name))
        self._training: PendingTraining | None = None
        self._stop: StopRequest | None = None
        self.finished: Finished | None = None
        """How the training in this object ended; None before."""

    @classmethod
    def of(cls, training: PendingTraining) -> "Run":
        """A run that is still to be trained."""
        run = cls.__new__(cls)
        run.folder = user_path(training.config.train.out_dir)
        run._training, run._stop, run.finished = training, None, None
        return run

    # --- training ---

    def __iter__(self) -> Iterator[Event]:
        """Train, event by event. Leaving the loop early stops the training, which then evaluates and saves.

        Raises the children of TinyGPTError, and UsageError if there is nothing to train.
        """
        training, self._training = self._training, None
        if training is None:
            raise UsageError(
                f"{self.folder} has nothing left to train here; resume it: run.resume(hours=1)", code="nothing-to-train"
            )
        self._stop = stop = StopRequest()
        with progress_display(training.config, training.progress) as viewers:
            recorded = RecordedRun(training.config, [*viewers, *map(_Caller, training.callbacks)])
            with contextlib.closing(recorded.train(training.is_resumed, training.request, stop)) as events:
                try:
                    for event in events:
                        if isinstance(event, Finished):
                            self.finished = event
                        yield event
                except GeneratorExit:  # the loop over us was left
                    self.stop()
                    for event in events:
                        self.finished = event if isinstance(event, Finished) else None
                    raise
                finally:
                    self._stop = None

    def wait(self) -> "Run":
        """Train to the end, or until Ctrl+C, which evaluates and saves; returns this run."""
        for _ in self:
            pass
        return self

    def stop(self) -> None:
        """Have the training end after its step; it evaluates and saves. May be called from a callback or a thread."""
        if self._stop is not None and self._stop.signal_number is None:
            self._stop.signal_number = signal.SIGINT

    def resume(
        self,
        *,
        hours: float | None = None,
        wait: bool = True,
        callbacks: Iterable[Callback] = (),
        progress: bool = True,
        **settings: Any,
    ) -> "Run":
        """Continue an unfinished run, or train a finished one further: for `hours`, or up to a larger steps=...

        Raises UsageError if it is finished and no more time or steps are given.
        """
        config = with_settings(config_of(self.folder), settings, hours, "resume()")
        extends = config.train.is_timed and (hours is not None or any(name in settings for name in BUDGETS))
        if not extends and not unfinished(self.folder, config.train.total_steps):
            raise UsageError(
                f"{self.folder} is finished; to train it further, give more time (hours=1) or more steps (steps=...)",
                code="resume-of-finished-run",
            )
        config = replace(config, train=replace(config.train, out_dir=str(self.folder)))
        self._training = PendingTraining(config, True, RunRequest(extends=extends), list(callbacks), progress)
        return self.wait() if wait else self

    # --- results ---

    @property
    def config(self) -> RunConfig:
        """The settings that the run uses, chosen ones included."""
        return load_config(self.folder / CONFIG_FILE, RunConfig())

    @property
    def summary(self) -> RunSummary:
        """The run in a few figures: state, step, best loss, time, size."""
        return summarize_run(self.folder)

    @property
    def state(self) -> RunState:
        """running, finished, stopped, failed, crashed or model only."""
        return self.summary.state

    @property
    def metrics(self) -> dict[str, NDArray[np.float64]]:
        """Every evaluation as columns: "step", "val_loss", "elapsed_s", ...; pandas.DataFrame(run.metrics) works."""
        try:
            lines = (self.folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            lines = []
        rows: list[dict[str, Any]] = []
        for line in lines:
            with contextlib.suppress(ValueError):  # the last line may be half written
                rows.append(vars(Evaluated.from_json_line(line)))
        names = Evaluated.__dataclass_fields__
        return {name: np.array([np.nan if row[name] is None else row[name] for row in rows], float) for name in names}

    @property
    def samples(self) -> list[Sample]:
        """What the best models wrote, from the first to the last."""
        return read_samples(self.folder)

    @property
    def plan(self) -> Plan | None:
        """What was expected of the run; None where its settings were not chosen by the planner."""
        return read_saved_plan(self.folder)

    @property
    def best_model(self) -> Model:
        """The model with the lowest validation loss. Raises BadInputError if there is none yet."""
        return load(self.folder / BEST_FILE)

    @property
    def final_model(self) -> Model:
        """The model of the last step. Raises BadInputError if the run is not finished."""
        return load(self.folder / FINAL_FILE)

    def report(self) -> Path:
        """Write report.html, the run on one page, into its folder; returns its path."""
        return write_report(self.folder)

    def __repr__(self) -> str:
        if self._training is not None:
            return f"<Run {self.folder}: not started; iterate over it, or call wait()>"
        summary = self.summary
        best = summary.best_val_bits_per_byte
        figures = f", best {best:.3f} bits per byte at step {summary.best_step:,}" if best and summary.best_step else ""
        return f"<Run {self.folder}: {summary.state}{figures}>"


@dataclass(frozen=True)
class _Caller(Consumer):
    """Passes the events to a function. One that raises is dropped with a message."""

    callback: Callback

    def consume(self, event: Event) -> None:
        self.callback(event)
