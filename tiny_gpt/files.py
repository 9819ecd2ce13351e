"""Files that are complete or absent: write beside, flush to the disk, rename.

A reader never sees a half-written file, whatever ends the writer: the old content stays until the new is whole.
"""

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tiny_gpt.errors import OutOfResourcesError


class Writable(Protocol):
    """Anything that bytes can be written to: a file, a hash, a counter."""

    def write(self, data: Any, /) -> object: ...


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that takes the name `path` only once it is whole and on the disk.

    Raises OutOfResourcesError when the disk is full or the folder cannot be written; `path` is untouched then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            yield file
            file.flush()
            sync_to_disk(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or it never came to be
            beside.unlink()


def remove_partial_files(folder: Path) -> None:
    """Delete what killed writers have left in `folder`. Only where no other process writes."""
    for left in folder.glob(".*.*.part"):
        with contextlib.suppress(OSError):
            left.unlink()


def sync_to_disk(descriptor: int) -> None:
    """fsync that also empties the drive's own cache on macOS, where plain fsync does not (fcntl(2))."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # some network drives refuse it; plain fsync remains
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` outlive a power cut, where the system can. Windows has no such call."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network drives refuse it; the rename itself has been done
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


CACHE_REMEDY = "name another folder for tiny_gpt's cache in the environment variable TINY_GPT_CACHE"


def write_error(path: Path, error: OSError, remedy: str = "choose another folder") -> OutOfResourcesError:
    """The error that tells a person why `path` could not be written and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfResourcesError(f"no space left to write {path}: free some, or {remedy}")
    reason = error.strerror or str(error)
    return OutOfResourcesError(f"cannot write {path}: {reason}; {remedy}")


def ensure_writable_folder(folder: Path, flag: str) -> Path:
    """`folder`, made if need be and proven writable by writing; raises OutOfResourcesError naming `flag`."""
    probe = folder / f".probe.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutOfResourcesError(
            f"{flag} {folder}: cannot write there ({reason}); name a folder that you may write to"
        ) from error
    return folder


def user_path(name: str) -> Path:
    """The path that a person named; ~ is their home, and an unknown ~user stays as it is."""
    return Path(os.path.expanduser(name))


def cache_folder() -> Path:
    """The user's cache: TINY_GPT_CACHE, else the system's own place (XDG, ~/Library/Caches, %LOCALAPPDATA%)."""
    if chosen := os.environ.get("TINY_GPT_CACHE"):
        return user_path(chosen)
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tiny_gpt"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(values: Any) -> str:
    """Hex digest of plain JSON types, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
