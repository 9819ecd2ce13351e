"""Atomic writes, paths and hashes of files.

A file is written under a temporary name in the same folder, flushed to the disk, then renamed. So a reader sees the old
content or the new, never a part of it, even if the writer is killed or the power fails.
"""

import contextlib
import errno
import hashlib
import json
import os
import shlex
import subprocess
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
    """Open a temporary binary file that replaces `path` when the `with` block ends without an exception.

    Raises OutOfResourcesError if the disk is full or the folder not writable; `path` is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            sync_to_disk(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or was never created
            temporary.unlink()


def remove_partial_files(folder: Path) -> None:
    """Delete the temporary files of writers that were killed. No other process may be writing to `folder`."""
    for path in folder.glob(".*.*.part"):
        with contextlib.suppress(OSError):
            path.unlink()


def sync_to_disk(descriptor: int) -> None:
    """fsync that also flushes the drive's own cache on macOS, where plain fsync does not: see fcntl(2)."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # some network drives do not support it; fsync then has to do
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries, so that a rename survives a power failure. Windows has no such call."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network drives do not support it; the rename is done anyway
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# Remedy for `write_error` where the folder is the cache.
CACHE_REMEDY = "set the environment variable TINY_GPT_CACHE to another folder for tiny_gpt's cache"


def write_error(path: Path, error: OSError, remedy: str = "choose another folder") -> OutOfResourcesError:
    """The error to raise for an OSError while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutOfResourcesError(f"no space left to write {path}: free some, or {remedy}", code="no-space-to-write")
    reason = error.strerror or str(error)
    return OutOfResourcesError(f"cannot write {path}: {reason}; {remedy}", code="not-writable")


def ensure_writable_folder(folder: Path, flag: str) -> Path:
    """`folder`, created if missing. Raises OutOfResourcesError, naming `flag`, if a test file cannot be written."""
    probe = folder / f".probe.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutOfResourcesError(
            f"{flag} {folder}: cannot write there ({reason}); choose a folder that you may write to",
            code="folder-not-writable",
        ) from error
    return folder


def user_path(name: str) -> Path:
    """A path as the user typed it, with ~ expanded; an unknown ~user stays as it is."""
    return Path(os.path.expanduser(name))


def quoted(argument: str) -> str:
    r"""`argument` as it has to be typed in a shell; what is not valid text as $'caf\xe9', for bash and zsh."""
    if os.name != "nt" and not argument.isascii() and os.fsencode(argument) != argument.encode("utf-8", "replace"):
        escaped = "".join(
            chr(byte) if chr(byte).isprintable() and byte < 128 and chr(byte) not in "'\\" else f"\\x{byte:02x}"
            for byte in os.fsencode(argument)
        )
        return f"$'{escaped}'"
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)


def quoted_python() -> str:
    """This Python as it has to be typed in a shell; `pip` alone may be that of another one."""
    return quoted(sys.executable)


def cache_folder() -> Path:
    """TINY_GPT_CACHE if it is set, otherwise tiny_gpt/ in the system's cache folder."""
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
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(values: Any) -> str:
    """SHA-256, in hex, of plain JSON values; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
