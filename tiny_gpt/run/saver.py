"""Saving on a disk that may be full, broken, read-only or gone.

Hours of training are worth more than any single file: a failed save is reported and retried at the next one, and
training continues.
"""

import errno
from collections.abc import Callable
from typing import TypeVar

from tiny_gpt.errors import OutOfResourcesError
from tiny_gpt.files import write_error
from tiny_gpt.run.checkpoint_store import CheckpointStore, DamagedError
from tiny_gpt.run.state import TrainState

Result = TypeVar("Result")


class Saver:
    """Tries to save, makes room where the disk is full, and warns in `state` when saving begins to fail or recovers."""

    def __init__(self, state: TrainState, store: CheckpointStore) -> None:
        self.state, self.store = state, store
        self.problem = ""
        """Why the last save failed; empty if it succeeded."""
        self.check_folder: Callable[[], None] = lambda: None
        """Called before each save; raises an error where the run's folder is no longer there (folder_guard.py)."""

    def attempt(self, save: Callable[[], Result]) -> Result | None:
        """What `save` returns, or None if it fails.

        While the disk is full, the oldest checkpoints are deleted, all but the newest. After any other failure there is
        one more attempt: a failed fsync says nothing about another file.
        """
        self.check_folder()
        is_second_attempt = False
        while True:
            try:
                result = save()
            except (OSError, OutOfResourcesError, DamagedError) as failure:
                if is_disk_full(failure):
                    if self.store.make_room():
                        continue
                elif not is_second_attempt:
                    is_second_attempt = True
                    continue
                self._report_failure(failure)
                return None
            if self.problem:
                self.state.warn("saving works again")
                self.problem = ""
            return result

    def _report_failure(self, failure: Exception) -> None:
        had_problem, self.problem = self.problem, str(self.as_error(failure))
        if not had_problem:
            self.state.warn(f"{self.problem}; training continues, and saving is retried")

    def as_error(self, failure: Exception) -> OutOfResourcesError:
        """The failure of a save in words for the user."""
        if isinstance(failure, OutOfResourcesError):
            return failure
        if isinstance(failure, OSError):
            return write_error(self.store.folder, failure)
        return OutOfResourcesError(
            f"{self.store.folder} does not hold what was just written ({failure})", code="disk-loses-data"
        )


def is_disk_full(failure: BaseException) -> bool:
    """Whether a save failed for lack of space or quota."""
    cause = failure if isinstance(failure, OSError) else failure.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
