"""Progress bars while a text is downloaded, read and encoded: one for each stage that takes a while."""

import contextlib
import sys
import time
from typing import TextIO, TypeVar, cast

from tqdm import tqdm

from tiny_gpt.data.progress import Measuring, Notice, Preparation, PreparationEvent, StageProgress
from tiny_gpt.ui.terminal import columns, printable, wrapped

BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}, {rate_fmt}]"
BAR_FORMAT_WITHOUT_TOTAL = "{desc}: {n_fmt}B [{elapsed}, {rate_fmt}]"
MEASURING_BAR_FORMAT = "{desc}: {percentage:3.0f}%|{bar:10}| [{elapsed}<{remaining}]"
MEASURING_UNITS = 1000
# A stage is shown only if it takes longer.
DELAY_S = 1.0
MEASURING = "measuring"
Result = TypeVar("Result")


class PreparationBar:
    """Shows preparation events on `stream`: a bar per stage on a terminal, elsewhere one line per stage."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self._is_terminal = stream, stream.isatty()
        self._stage, self._started = "", 0.0
        self._bar: tqdm | None = None
        self._has_line = False

    def consume(self, event: PreparationEvent) -> None:
        if isinstance(event, Notice):
            text = printable(event.text)
            tqdm.write(wrapped(text, columns()) if self._is_terminal else text, file=self.stream)
            return
        if isinstance(event, Measuring):
            self._show_measuring(event)
            return
        now = time.perf_counter()
        if event.stage != self._stage:
            self.close()
            self._stage, self._started, self._has_line = event.stage, now, False
        if now - self._started < DELAY_S:
            return
        if self._is_terminal:
            self._update_bar(event, now)
        else:
            self._write_line(event)

    def close(self) -> None:
        """Remove the bar from the screen."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._stage = ""

    def _show_measuring(self, event: Measuring) -> None:
        """One bar for all measurements, from the start: the first one may take seconds; elsewhere a line for each."""
        if not self._is_terminal:
            if event.what != self._stage:
                self._stage = event.what
                tqdm.write(f"measuring {event.what} ...", file=self.stream)
                self.stream.flush()
            return
        if self._bar is None or self._stage != MEASURING:
            self.close()
            self._stage = MEASURING
            self._bar = tqdm(
                total=MEASURING_UNITS,
                bar_format=MEASURING_BAR_FORMAT,
                leave=False,
                file=self.stream,
                dynamic_ncols=True,
            )
        self._bar.set_description_str(f"Measuring {event.what}", refresh=False)
        self._bar.update(round(event.fraction * MEASURING_UNITS) - self._bar.n)
        self._bar.refresh()

    def _update_bar(self, event: StageProgress, now: float) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc=event.stage.capitalize(),
                total=event.total_bytes,
                unit="B",
                unit_scale=True,
                bar_format=BAR_FORMAT if event.total_bytes else BAR_FORMAT_WITHOUT_TOTAL,
                leave=False,
                file=self.stream,
                dynamic_ncols=True,
            )
            self._bar.start_t -= now - self._started  # the stage began before its bar was shown
        self._bar.update(event.done_bytes - self._bar.n)

    def _write_line(self, event: StageProgress) -> None:
        if self._has_line:
            return
        size = f" {event.total_bytes / 1e6:,.0f} MB" if event.total_bytes else ""
        tqdm.write(f"{self._stage}{size} ...", file=self.stream)
        self.stream.flush()
        self._has_line = True


def with_progress(stages: Preparation[Result]) -> Result:
    """Run `stages` to the end, with their progress on standard error, and return the result."""
    with contextlib.closing(PreparationBar(sys.stderr)) as bar:
        while True:
            try:
                bar.consume(next(stages))
            except StopIteration as stop:
                return cast(Result, stop.value)
