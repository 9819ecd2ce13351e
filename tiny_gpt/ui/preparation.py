"""What a person sees while their text is read, downloaded and encoded: a bar for each stage that takes a while."""

import contextlib
import sys
import time
from collections.abc import Generator
from typing import TextIO, TypeVar, cast

from tqdm import tqdm

from tiny_gpt.data.progress import Notice, PreparationEvent
from tiny_gpt.ui.terminal import printable

BAR = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}, {rate_fmt}]"
OPEN_BAR = "{desc}: {n_fmt}B [{elapsed}, {rate_fmt}]"
Result = TypeVar("Result")

# A stage that is over sooner than this is not shown; without a terminal one line tells of each that takes longer.
PATIENCE_S = 1.0


class PreparationBar:
    """Consumes the steps of preparing a text onto `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self._has_bars = stream, stream.isatty()
        self._stage, self._started = "", 0.0
        self._bar: tqdm | None = None
        self._is_told = False

    def consume(self, step: PreparationEvent) -> None:
        if isinstance(step, Notice):
            tqdm.write(printable(step.text), file=self.stream)
            return
        now = time.perf_counter()
        if step.stage != self._stage:
            self.close()
            self._stage, self._started, self._is_told = step.stage, now, False
        if now - self._started < PATIENCE_S:
            return
        if not self._has_bars:
            if not self._is_told:
                size = f" {step.total_bytes / 1e6:,.0f} MB" if step.total_bytes else ""
                tqdm.write(f"{self._stage}{size} ...", file=self.stream)
                self.stream.flush()
            self._is_told = True
            return
        if self._bar is None:
            self._bar = tqdm(
                desc=step.stage.capitalize(),
                total=step.total_bytes,
                unit="B",
                unit_scale=True,
                bar_format=BAR if step.total_bytes else OPEN_BAR,
                leave=False,
                file=self.stream,
                dynamic_ncols=True,
            )
            self._bar.start_t -= now - self._started
        self._bar.update(step.done_bytes - self._bar.n)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""


def shown(stages: Generator[PreparationEvent, None, Result]) -> Result:
    """The result of `stages`, their progress shown on standard error."""
    with contextlib.closing(PreparationBar(sys.stderr)) as bar:
        while True:
            try:
                bar.consume(next(stages))
            except StopIteration as stop:
                return cast(Result, stop.value)
