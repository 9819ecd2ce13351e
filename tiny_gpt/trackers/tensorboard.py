"""TensorBoard: event files in the run's folder. `tensorboard --logdir runs` shows all runs.

Written with the tensorboard package alone; torch.utils.tensorboard would load torch.
"""

import time
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tiny_gpt.trackers.base import TrackedRun, TrackedState


def open_run(run: TrackedRun) -> "TensorBoard":
    """A new event file; TensorBoard reads all of a run's files as one."""
    tracker = TensorBoard(EventFileWriter(str(run.folder)))
    if not run.is_resumed:
        tracker.add(0, time.time(), hparams_pb({name: _hyperparameter(value) for name, value in run.config.items()}))
    return tracker


class TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, step: int, at: float, summary: Any) -> None:
        """Write the summaries of one step."""
        self._writer.add_event(Event(step=step, wall_time=at, summary=summary))

    def log_row(self, step: int, at: float, values: dict[str, float]) -> None:
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.add(step, at, Summary(value=scalars))

    def log_sample(self, step: int, at: float, text: str) -> None:
        # Indented text is code in Markdown: it is shown as it is, whatever is in it.
        self.add(step, at, text_pb("sample", "".join(f"    {line}\n" for line in text.splitlines())))

    def roll_back(self, step: int) -> None:
        """TensorBoard drops everything from `step` on when it reads the start of a session there."""
        self._writer.add_event(Event(step=step, wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, state: TrackedState, results: dict[str, float]) -> None:
        self._writer.close()


def _hyperparameter(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
