"""The training process's side of its watchdog: a few bytes of memory that both share.

The process counts its steps there, which is how a hang shows; the watchdog asks there for a fresh process.
"""

import contextlib
import mmap
import os
import signal
import sys
from functools import cache

HEARTBEAT_VARIABLE, REASON_VARIABLE = "TINY_GPT_HEARTBEAT", "TINY_GPT_RESTART_REASON"
# The shared file: these 64-bit words, then one byte for every signal that the child received.
BEATS, PID, REQUEST, N_WORDS = range(4)
N_BYTES = 8 * N_WORDS


class Heartbeat:
    """The training process's side of the shared file. Make it early, in the main thread."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), N_BYTES)).cast("Q")
        self._words[PID] = os.getpid()  # the parent may know a launcher's only
        if sys.platform != "win32":
            # The interpreter appends each signal to the file as it comes, even while a long computation keeps Python's
            # handler waiting: the parent sees which ones it need not pass on.
            with contextlib.suppress(ValueError):  # not the main thread
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
                signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def beat(self) -> None:
        """Tell the parent that work goes on. From the first beat on, silence is a hang."""
        self._words[BEATS] += 1

    @property
    def restart_requested(self) -> bool:
        """Whether the parent wants a checkpoint saved and an exit with RESTART_EXIT_CODE."""
        return self._words[REQUEST] != 0


@cache
def heartbeat() -> Heartbeat | None:
    """The heartbeat that a parent listens to; None if there is none. Call it early: see `Heartbeat`."""
    try:
        return Heartbeat(os.environ[HEARTBEAT_VARIABLE])
    except (KeyError, OSError, ValueError):
        return None


def watched() -> bool:
    """Whether this process is a watchdog's child."""
    return HEARTBEAT_VARIABLE in os.environ


def restart_reason() -> str:
    """Why the watchdog started this process again: "the training process hung for 10 min 01 s"; "" if it did not."""
    return os.environ.get(REASON_VARIABLE, "")
