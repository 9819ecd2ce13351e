"""Ctrl+C and SIGTERM as a request: the current step ends, then the run saves and stops. A second one stops at once.

SIGHUP, which a terminal sends when it is closed, stops nothing: a run needs no terminal.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

# Exit codes of a process that a signal has stopped: 128 + SIGINT, 128 + SIGTERM.
STOPPED_CODES = (130, 143)

# timeout(1) and service managers send TERM to a process and then to its whole process group: one request, not two.
DUPLICATE_WITHIN_S = 1.0


class Stopped(KeyboardInterrupt):
    """A signal has ended the program before it had anything to save."""

    def __init__(self, signal_number: int) -> None:
        super().__init__()
        self.signal_number = signal_number


def raise_stops() -> None:
    """Have the first INT or TERM raise Stopped in the main thread, so that the program can take leave of others, and
    ignore those that follow."""
    has_stopped = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal has_stopped
        if not has_stopped:
            has_stopped = True
            raise Stopped(number)

    _handle_stops(stop)


class HeardStop:
    """In a process that another one leads: INT and TERM are only recorded, for that one to hear, until `is_over`."""

    def __init__(self) -> None:
        self.number = 0
        """The signal that asks this process to stop; 0 for none."""
        self.is_over = False
        """Whether a signal ends this process from here on."""

    def listen(self) -> None:
        _handle_stops(self._on_stop)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self.is_over:
            self.is_over = False  # once
            raise Stopped(number)
        self.number = number


def _handle_stops(handler: Callable[[int, FrameType | None], None]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


class StopRequest:
    """A context in which SIGHUP only sets `hung_up`; after `listen` the first INT or TERM only sets `signal_number`.

    The next INT raises KeyboardInterrupt, as does a TERM that is not a duplicate of the first. With `to_the_end`,
    SIGHUP stops nothing after the context either: the process has a report and a sample to write.
    """

    def __init__(self, to_the_end: bool = False) -> None:
        self._to_the_end = to_the_end
        self.signal_number: int | None = None
        self.hung_up = False
        self._requested_at = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if hasattr(signal, "SIGHUP"):  # Windows has none
            self._handle(signal.SIGHUP, self._on_hangup)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            is_kept = self._to_the_end and number not in (signal.SIGINT, signal.SIGTERM)
            signal.signal(number, signal.SIG_IGN if is_kept else handler)

    def hear(self, number: int) -> None:
        """Take a signal that another process of the training received as one of this process's own; 0 is none."""
        if number and self.signal_number is None:
            self.signal_number, self._requested_at = number, time.monotonic()

    def listen(self) -> None:
        """Turn INT and TERM into requests from here on; before, they end the program as usual."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handle(number, self._on_stop)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():  # a notebook may run us in another thread
            self._previous_handlers[number] = signal.signal(number, handler)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._requested_at = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._requested_at > DUPLICATE_WITHIN_S:
            raise KeyboardInterrupt

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True
