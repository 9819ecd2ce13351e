"""Removes a run from the disk: what tiny_gpt wrote, and nothing else."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.config import SAMPLES_FOLDER, STATUS_FILE
from tiny_gpt.config.run import CHECKPOINTS_FOLDER, RUN_FILES
from tiny_gpt.errors import BadInputError, UsageError
from tiny_gpt.files import write_error
from tiny_gpt.run.output_folder import EARLIER_FOLDER, LOCK_FILE, run_lock
from tiny_gpt.run.status import read_status
from tiny_gpt.run.summary import files_below, is_run, is_running

# What tiny_gpt writes into folders with names that others use too.
CONTENTS = {
    SAMPLES_FOLDER: re.compile(r"(step|epoch|progress)-[\d.]+\.txt|index\.jsonl"),
    CHECKPOINTS_FOLDER: re.compile(r"\.?step-\d+.*|set-aside"),
    EARLIER_FOLDER: re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_*"),
}


@dataclass(frozen=True)
class Removal:
    """What removing the run in `folder` deletes, and what it leaves."""

    folder: Path
    ours: list[Path]
    """Files and whole folders that tiny_gpt wrote."""
    others: list[str]
    """Names of everything else in the folder: links too, wherever they lead."""

    @property
    def disk_bytes(self) -> int:
        """Bytes that removal frees."""
        return sum(_size(path) for path in self.ours)

    def carry_out(self) -> None:
        """Delete, holding the run's lock; then the folder itself, if it is empty and not the working folder.

        Raises UsageError if a training has started, and OutOfResourcesError where a file cannot be deleted.
        """
        with run_lock(self.folder):
            for path in self.ours:
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                except OSError as error:
                    raise write_error(path, error, "close what uses it, then try again") from error
        (self.folder / LOCK_FILE).unlink(missing_ok=True)
        if not any(self.folder.iterdir()) and self.folder.resolve() != Path.cwd():
            self.folder.rmdir()


def plan_removal(folder: Path) -> Removal:
    """What removing the run in `folder` would do.

    Raises BadInputError if there is no run or the folder is a link, UsageError while it is being trained.
    """
    if folder.is_symlink():
        raise BadInputError(
            f"{folder} is a link to {folder.resolve()}; name that folder to remove the run in it", code="run-is-a-link"
        )
    if not is_run(folder):
        raise BadInputError(f"{folder} holds no run, so there is nothing to remove", code="no-run-to-remove")
    if is_running(read_status(folder / STATUS_FILE)):
        raise UsageError(f"{folder} is being trained; stop that training first (Ctrl+C)", code="run-in-use")
    ours: list[Path] = []
    others: list[str] = []
    for entry in _entries(folder):
        if entry.name == LOCK_FILE:
            continue
        if entry.is_symlink() or not (entry.name in (*RUN_FILES, EARLIER_FOLDER) or _is_partial(entry.name)):
            others.append(entry.name)
        elif entry.name in CONTENTS and entry.is_dir():
            _sort(entry, ours, others)
        else:
            ours.append(Path(entry.path))
    return Removal(folder, ours, others)


def _sort(folder: os.DirEntry[str], ours: list[Path], others: list[str]) -> None:
    """A folder in which only what CONTENTS describes is ours; as a whole if there is nothing else."""
    found = {entry: bool(CONTENTS[folder.name].fullmatch(entry.name)) for entry in _entries(Path(folder.path))}
    if all(is_known and not entry.is_symlink() for entry, is_known in found.items()):
        ours.append(Path(folder.path))
        return
    for entry, is_known in found.items():
        if is_known and not entry.is_symlink():
            ours.append(Path(entry.path))
        else:
            others.append(f"{folder.name}/{entry.name}")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def _is_partial(name: str) -> bool:
    """Whether a file is what a killed writer left: see files.py."""
    return name.startswith(".") and name.endswith(".part")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(size for _, size in files_below(path))
    return path.stat().st_size
