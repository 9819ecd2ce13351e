"""A run's output folder while it is trained: locked for one process, and free of an earlier run's files."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from tiny_gpt.config import BEST_FILE, FINAL_FILE
from tiny_gpt.config.run import CHECKPOINTS_FOLDER, RUN_FILES
from tiny_gpt.errors import UsageError
from tiny_gpt.files import atomic_write, ensure_writable_folder, remove_partial_files, write_error
from tiny_gpt.run.checkpoint_store import CheckpointStore
from tiny_gpt.run.held_folder import HeldFolder

EARLIER_FOLDER = "earlier"
LOCK_FILE = ".lock"


class LockedFolder:
    """A run's folder that this process alone writes to, for as long as it holds the lock."""

    def __init__(self, out_dir: Path) -> None:
        """Creates the folder if needed. Raises UsageError while another process trains there, OutOfResourcesError where
        it cannot be written."""
        self.path = out_dir
        self._acquire()

    def _acquire(self) -> None:
        out_dir = self.path
        self._lock = filelock.FileLock(ensure_writable_folder(out_dir, "--out-dir") / LOCK_FILE)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as timeout:
            raise UsageError(
                f"another process is training in {out_dir}; wait for it, stop it, or choose another folder with "
                "--out-dir",
                code="run-folder-in-use",
            ) from timeout
        except (OSError, NotImplementedError):
            pass  # some network drives have no locks
        self.held = HeldFolder(out_dir)

    def release(self) -> None:
        self._lock.release()
        self.held.close()

    def take_again(self) -> None:
        """Lock the folder that has this path now, created if needed. Raises as the constructor does."""
        self.release()
        self._acquire()


def is_in_use(out_dir: Path) -> bool:
    """Whether a process is training there now. False where a drive has no locks."""
    if not (out_dir / LOCK_FILE).is_file():
        return False
    try:
        with filelock.FileLock(out_dir / LOCK_FILE, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return False


@contextlib.contextmanager
def run_lock(out_dir: Path) -> Iterator[LockedFolder]:
    """Lock the folder for this process, and create it if needed; the system releases the lock of a killed process.

    Raises as LockedFolder does. A folder created for a run that then failed to start is removed again.
    """
    created = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    locked = LockedFolder(out_dir)
    remove_partial_files(out_dir)
    CheckpointStore(out_dir).remove_partial()
    try:
        yield locked
    finally:
        is_ours = locked.held.state() == "in place"
        locked.release()
        with contextlib.suppress(OSError):
            if created and is_ours and os.listdir(out_dir) == [LOCK_FILE]:
                (out_dir / LOCK_FILE).unlink()
            for folder in created if is_ours else ():
                folder.rmdir()


def archive_earlier_run(out_dir: Path) -> Path | None:
    """Move the files of a run that is already in `out_dir` to earlier/DATE, so that none is overwritten.

    Returns that folder; None where there is neither a model file nor a checkpoint to keep. Raises OutOfResourcesError.
    """
    names = [name for name in RUN_FILES if (out_dir / name).exists()]
    if not set(names) & {BEST_FILE, FINAL_FILE, CHECKPOINTS_FOLDER}:
        return None
    written_at = time.localtime(max((out_dir / name).stat().st_mtime for name in names))
    folder = out_dir / EARLIER_FOLDER / time.strftime("%Y-%m-%d_%H-%M-%S", written_at)
    while folder.exists():  # two runs within one second
        folder = folder.with_name(folder.name + "_")
    try:
        folder.mkdir(parents=True)
        for name in names:
            shutil.move(out_dir / name, folder / name)
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def write_json_atomically(path: Path, values: Mapping[str, Any]) -> None:
    """Write config.json or plan.json, complete or not at all; raises OutOfResourcesError."""
    with atomic_write(path) as file:
        file.write(json.dumps(values, indent=2).encode() + b"\n")
