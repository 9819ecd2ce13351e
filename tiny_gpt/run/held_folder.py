"""A run's folder held by its identity, so that it is known again when it was moved, deleted or replaced.

A path is only a name: `mv runs/book ~/books` during a training gives the folder another one, and another folder may get
the old name. Knows files only, nothing of training or torch.
"""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import Literal

# "in place": the path still leads to the folder. "moved": it is known where the folder is now. "replaced": another
# folder has its name. "deleted": it has no name any more. "out of reach": as on a disk that was unplugged.
FolderState = Literal["in place", "moved", "replaced", "deleted", "out of reach"]


class HeldFolder:
    """The folder that `path` leads to now. Costs a few microseconds to check."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if it does not exist."""
        self.path = path
        self._identity = _identity(os.stat(path))
        self._descriptor: int | None = None
        if os.name != "nt":  # Windows moves no folder with open files, and opens no folders
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def state(self) -> FolderState:
        """What became of the folder."""
        try:
            if _identity(os.stat(self.path)) == self._identity:
                return "in place"
        except OSError as failure:
            if failure.errno not in (errno.ENOENT, errno.ENOTDIR):
                return "in place"  # unknown at the moment; saving reports what is wrong
            if self.new_path() is not None:
                return "moved"
            return "deleted" if self._is_deleted() else "out of reach"
        return "moved" if self.new_path() is not None else "replaced"

    def new_path(self) -> Path | None:
        """Where the folder is now; None if it has not moved, is deleted, or the system does not say."""
        if self._descriptor is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            found = Path(_path_of(self._descriptor))
            if _identity(os.stat(found)) == self._identity and not self._is_at_its_path():
                return found
        return None

    def _is_at_its_path(self) -> bool:
        try:
            return _identity(os.stat(self.path)) == self._identity
        except OSError:
            return False

    def _is_deleted(self) -> bool:
        with contextlib.suppress(OSError):
            return self._descriptor is None or os.fstat(self._descriptor).st_nlink == 0
        return False


class FollowedFolder:
    """A folder that may not exist yet, and may be moved once it does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: HeldFolder | None = None

    def path(self) -> Path:
        """Where it is now, as far as the system says; ask once while it is in its first place."""
        if self._held is None:
            with contextlib.suppress(OSError):
                self._held = HeldFolder(self._path)
        elif place := self._held.new_path():
            self._path = self._held.path = place
        return self._path


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _path_of(descriptor: int) -> str:
    """The present path of an open folder; raises OSError where the system does not know it."""
    if sys.platform == "darwin":
        import fcntl

        return os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
    return os.readlink(f"/proc/self/fd/{descriptor}")
