"""What records a run in its folder, whoever drives the run: the commands, or a Python program."""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Protocol

from tiny_gpt.config import LOG_FILE, METRICS_FILE, SAMPLES_FOLDER, STATUS_FILE, RunConfig, SampleConfig
from tiny_gpt.data.progress import Notice
from tiny_gpt.files import user_path
from tiny_gpt.host.heartbeat import heartbeat
from tiny_gpt.host.signals import StopRequest
from tiny_gpt.inference.engine import compile_engine, must_compile
from tiny_gpt.run.events import Event, Prepared
from tiny_gpt.run.run import run
from tiny_gpt.training.budget import RunRequest
from tiny_gpt.ui.log import LogFile
from tiny_gpt.ui.metrics import MetricsFile
from tiny_gpt.ui.samples import Samples
from tiny_gpt.ui.status import StatusFile
from tiny_gpt.ui.terminal import error


class Consumer(Protocol):
    """Anything that receives the events of a run."""

    def consume(self, event: Event) -> None: ...


class RecordedRun:
    """A run whose metrics, log, status and samples are written into its folder, and whose events go to `viewers`."""

    def __init__(self, config: RunConfig, viewers: Sequence[Consumer] = ()) -> None:
        out_dir = user_path(config.train.out_dir)
        self.config, self.samples = config, Samples(config, out_dir / SAMPLES_FOLDER)
        self._status, self._viewers = StatusFile(out_dir / STATUS_FILE), list(viewers)
        self._consumers: list[Consumer] = [
            *self._viewers,
            MetricsFile(out_dir / METRICS_FILE),
            LogFile(config, out_dir / LOG_FILE),
            self._status,
            self.samples,
        ]

    def train(self, resume: bool, request: RunRequest, stop: StopRequest | None = None) -> Generator[Event, None, None]:
        """Train, and yield each event after it has been recorded. Raises what `run` raises."""
        is_prepared = False
        with self._failures_recorded(), contextlib.closing(run(self.config, resume, request, stop)) as events:
            for i, event in enumerate(events):
                deliver(event, self._consumers)
                is_prepared = is_prepared or isinstance(event, Prepared)
                if not is_prepared and (heart := heartbeat()):
                    heart.prepare()
                if i == 0 and must_compile(self.config.model):  # before the time of the run starts
                    deliver(Notice("compiling the decoder for this CPU: about 15 seconds, only once"), self._viewers)
                    compile_engine(self.config.model, SampleConfig().precision)
                yield event

    @contextlib.contextmanager
    def _failures_recorded(self) -> Iterator[None]:
        """Whatever ends the run early is in its status too."""
        try:
            yield
        except BaseException as failure:
            self._status.fail(failure)
            raise


def deliver(event: Event, consumers: list[Consumer]) -> None:
    """Pass an event to every consumer. One that raises is dropped with a message, since it must not end a training."""
    for consumer in list(consumers):
        try:
            consumer.consume(event)
        except Exception as failure:
            consumers.remove(consumer)
            error(f"{type(consumer).__name__} failed and is no longer used: {failure}")
