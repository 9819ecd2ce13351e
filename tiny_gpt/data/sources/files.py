"""Files to read: the files in a folder, and a hash that identifies a list of them."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.sources.left_out import NAMES_IN_RUN, holds_run, reason_to_leave_out
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


def files_in_folder(folder: Path, skipped: Counter[str], examples: dict[str, str]) -> Iterator[SourceFile]:
    """All files below `folder` in the order of their names, each once however many links lead to it.

    Counts in `skipped` what is left out, with the first of each kind in `examples`: hidden, not readable, not a regular
    file, folders of runs, models and software. Raises OSError for `folder` itself.
    """
    status = os.stat(folder)
    walk = _Walk(str(folder), {(status.st_dev, status.st_ino)}, skipped, examples)
    yield from walk.files(str(folder))


@dataclass(frozen=True)
class _Walk:
    """A walk through a folder, depth first."""

    root: str
    seen: set[tuple[int, int]]
    """Device and inode of files and folders already visited: links may form a cycle."""
    skipped: Counter[str]
    examples: dict[str, str]

    def files(self, folder: str) -> Iterator[SourceFile]:
        """The files below `folder`."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._skip(f"folder that cannot be read ({error.strerror})", folder)
            return
        names = {entry.name for entry in entries}
        if folder != self.root and (reason := reason_to_leave_out(folder, names)):
            self._skip(reason, folder)
            return
        has_run = folder == self.root and holds_run(names)
        for entry in entries:
            if entry.name.startswith("."):
                self._skip("hidden", entry.path)
            elif has_run and entry.name in NAMES_IN_RUN:
                self._skip("file of a run", entry.path)
            else:
                yield from self._entry(entry)

    def _entry(self, entry: os.DirEntry[str]) -> Iterator[SourceFile]:
        try:
            status = entry.stat()
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:
            self._skip("broken link", entry.path)
            return
        inode = (status.st_dev, status.st_ino)
        if inode in self.seen and status.st_ino:  # some file systems have no inodes and report 0
            self._skip("another name of a file or folder already read", entry.path)
        elif is_folder:
            self.seen.add(inode)
            yield from self.files(entry.path)
        elif is_file:
            self.seen.add(inode)
            yield SourceFile(Path(entry.path), is_named=False)
        else:
            self._skip("not a regular file", entry.path)

    def _skip(self, reason: str, path: str) -> None:
        self.skipped[reason] += 1
        self.examples.setdefault(reason, os.path.relpath(path, self.root))


def content_hash(files: Sequence[SourceFile]) -> Preparation[str]:
    """SHA-256 over names, bytes and order of `files`: equal for the same text under the same names."""
    digest = hashlib.sha256()
    total_bytes, done_bytes = sum(file_size(file.path) for file in files), 0
    is_parallel = total_bytes > MIN_PARALLEL_BYTES and total_bytes > len(files) * MIN_PARALLEL_FILE_BYTES
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hash_file, files) if is_parallel else map(_hash_file, files)
        for file, file_hash in zip(files, hashes, strict=True):
            if file.declared_encoding:
                digest.update(f"{file.declared_encoding}\n".encode())
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
