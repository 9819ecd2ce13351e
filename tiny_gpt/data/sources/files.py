"""Files to read: the files in a folder, and a hash that identifies a list of them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.files import sha256_of

# Below this total, and for files smaller than 64 KiB on average, threads cost more time than they save.
MIN_PARALLEL_BYTES = 8 << 20
MIN_PARALLEL_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class SourceFile:
    """A file to read."""

    path: Path
    members: str = "*"
    """Pattern for the names of the files to read, if this is a zip archive."""
    is_named: bool = True
    """Whether the user named it, so that it must be readable; a file found in a folder is skipped if it is not."""

    declared_encoding: str = ""
    """The encoding that a web server stated for it."""

    def state(self) -> tuple[int, int]:
        """Size and modification time, by which a change is noticed. Raises OSError."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


def files_in_folder(folder: Path, skipped: Counter[str]) -> Iterator[SourceFile]:
    """All files below `folder` in the order of their names, each once however many links lead to it.

    Counts in `skipped` what is left out: hidden, not readable, not a regular file. Raises OSError for `folder` itself.
    """
    status = os.stat(folder)
    yield from _walk(str(folder), {(status.st_dev, status.st_ino)}, skipped)


def _walk(folder: str, seen: set[tuple[int, int]], skipped: Counter[str]) -> Iterator[SourceFile]:
    """Depth first. `seen` holds device and inode of files and folders already visited: links may form a cycle."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        skipped[f"folder that cannot be read ({error.strerror})"] += 1
        return
    for entry in entries:
        if entry.name.startswith("."):
            skipped["hidden"] += 1
            continue
        try:
            status = entry.stat()
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:
            skipped["broken link"] += 1
            continue
        inode = (status.st_dev, status.st_ino)
        if inode in seen and status.st_ino:  # some file systems have no inodes and report 0
            skipped["another name of a file or folder already read"] += 1
        elif is_folder:
            seen.add(inode)
            yield from _walk(entry.path, seen, skipped)
        elif is_file:
            seen.add(inode)
            yield SourceFile(Path(entry.path), is_named=False)
        else:
            skipped["not a regular file"] += 1


def content_hash(files: Sequence[SourceFile]) -> Preparation[str]:
    """SHA-256 over names, bytes and order of `files`: equal for the same text under the same names."""
    digest = hashlib.sha256()
    total_bytes, done_bytes = sum(file_size(file.path) for file in files), 0
    is_parallel = total_bytes > MIN_PARALLEL_BYTES and total_bytes > len(files) * MIN_PARALLEL_FILE_BYTES
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hash_file, files) if is_parallel else map(_hash_file, files)
        for file, file_hash in zip(files, hashes, strict=True):
            digest.update(f"{file.path.name}\0{file.members}\0{file.is_named}\0{file_hash}\n".encode(errors="replace"))
            done_bytes += file_size(file.path)
            yield StageProgress("checking", done_bytes, total_bytes)
    return digest.hexdigest()


def file_size(path: Path) -> int:
    """Bytes; 0 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hash_file(file: SourceFile) -> str:
    """A file that cannot be read has a hash too: reading it later raises the reason."""
    try:
        return sha256_of(file.path)
    except OSError as error:
        return f"unreadable: {error.errno}"
