"""The training process's side of its watchdog: a few bytes of shared memory.

The watchdog (watchdog.py) starts the training process with two environment variables:

- TINY_GPT_HEARTBEAT: path of a file that both processes map into memory. The child increments a counter there with
  every step, so the parent notices a hang; the parent sets a flag there to ask for a new process. The child also counts
  its progress in preparing the run there, and says with which exit code it is about to end.
- TINY_GPT_RESTART_REASON: why the child was started again; empty the first time.

Layout of the file: N_WORDS unsigned 64-bit words, indexed by BEATS, PID and so on; behind them one byte for each signal
that the child has received.
"""

import contextlib
import mmap
import os
import signal
import sys
from functools import cache

from tiny_gpt.host.torchrun import is_follower

HEARTBEAT_VARIABLE, REASON_VARIABLE = "TINY_GPT_HEARTBEAT", "TINY_GPT_RESTART_REASON"
BEATS, PID, RESTART_REQUEST, PREPARATION, OUTCOME, N_WORDS = range(6)
HEARTBEAT_BYTES = 8 * N_WORDS


class Heartbeat:
    """The child's end of the shared file. Create it early, in the main thread."""

    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), HEARTBEAT_BYTES)).cast("Q")
        self._words[PID] = os.getpid()  # the parent may know only the pid of a launcher
        if sys.platform != "win32":
            # The interpreter appends each signal's number to the file on arrival, even while a long computation delays
            # Python's handler. So the parent sees which signals it need not pass on.
            with contextlib.suppress(ValueError):  # not the main thread
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
                signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)

    def beat(self) -> None:
        """Tell the parent that work continues. From the first beat on, silence is a hang."""
        self._words[BEATS] += 1

    def prepare(self) -> None:
        """Tell the parent that the preparation makes progress."""
        self._words[PREPARATION] += 1

    def leave(self, exit_code: int) -> None:
        """Tell the parent that this process ends by itself with `exit_code`.

        Without this, an exit is a crash: libraries end a process too, with codes of their own.
        """
        self._words[OUTCOME] = exit_code + 1

    @property
    def restart_requested(self) -> bool:
        """Whether the parent wants a checkpoint saved and an exit with RESTART_EXIT_CODE."""
        return self._words[RESTART_REQUEST] != 0


@cache
def heartbeat() -> Heartbeat | None:
    """The heartbeat that the parent listens to; None without a watchdog, and in a process that rank 0 leads. Call it
    early: see `Heartbeat`."""
    if is_follower():
        return None
    try:
        return Heartbeat(os.environ[HEARTBEAT_VARIABLE])
    except (KeyError, OSError, ValueError):
        return None


def is_watched() -> bool:
    """Whether this process is a watchdog's child."""
    return HEARTBEAT_VARIABLE in os.environ


def restart_reason() -> str:
    """Why the watchdog restarted this process, as "the training process hung for 10 min 01 s"; "" the first time."""
    return os.environ.get(REASON_VARIABLE, "")
