"""Ctrl+C and SIGTERM as a polite question: the step ends, then the run saves and stops. A second one ends at once."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequest:
    """A context in which the first INT or TERM only sets `signal_number` and the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._earlier_handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # notebooks may run us elsewhere
            for number in (signal.SIGINT, signal.SIGTERM):
                self._earlier_handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier_handlers.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
