"""Ctrl+C and SIGTERM as a polite question: the step ends, then the run saves and stops. A second one ends at once.

SIGHUP, which a terminal sends when it is closed, ends nothing: a night goes on without a screen.
"""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

# timeout(1) and service managers send TERM to a process and then to its whole group.
SAME_REQUEST_S = 1.0


class StopRequest:
    """A context in which HUP only sets `hung_up`, and after `listen` the first INT or TERM only sets `signal_number`.

    The second one raises KeyboardInterrupt, unless it is but the echo of a TERM.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.hung_up = False
        self._asked_at = 0.0
        self._earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if hasattr(signal, "SIGHUP"):  # Windows has none
            self._handle(signal.SIGHUP, self._hang_up)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handle(number, self._ask)

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        if threading.current_thread() is threading.main_thread():  # notebooks may run us elsewhere
            self._earlier_handlers[number] = signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number, self._asked_at = number, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._asked_at > SAME_REQUEST_S:
            raise KeyboardInterrupt

    def _hang_up(self, _number: int, _frame: FrameType | None) -> None:
        self.hung_up = True
