"""What a person points at, turned into files on this disk: paths, folders, globs, `-`, addresses, `hf:`, known texts.

Does not open them but to hash them: formats.py reads, corpus.py gathers. `A|B` means B where A cannot be had.
"""

import glob
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tiny_gpt.data.progress import Notice, PreparationEvent, StageProgress
from tiny_gpt.data.sources.catalog import DATASETS, fetch, fetch_address
from tiny_gpt.data.sources.hub import fetch_from_hub
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import atomic_write, cache_folder, sha256_of, user_path, write_error

STDIN = "-"
ADDRESS = ("https://", "http://")
HUB = "hf:"
# Small files are hashed faster one after the other than by handing them around.
MANY_BYTES = 8 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file to be read."""

    path: Path
    members: str = "*"
    """Of a zip archive, the files whose names match."""
    is_named: bool = True
    """A person named it, so it must be readable; what was only found in a folder is skipped if it is not."""

    def state(self) -> tuple[int, int]:
        """Size and time of the last change, to notice that it changes. Raises OSError."""
        status = self.path.stat()
        return status.st_size, status.st_mtime_ns


@dataclass
class Sources:
    """The files behind some sources."""

    specs: list[str] = field(default_factory=list)
    """The sources as they were used: what stood in for another, and where standard input has been kept."""
    files: list[SourceFile] = field(default_factory=list)
    val_files: list[SourceFile] = field(default_factory=list)
    """The validation text that a known corpus brings along."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> number of files that were found in folders and left out."""


def resolve(words: Sequence[str]) -> Generator[PreparationEvent, None, Sources]:
    """The files of all `words`, downloaded if need be. Raises BadInputError naming the one that cannot be had."""
    sources = Sources()
    for word in words:
        alternatives = word.split("|") if not os.path.exists(user_path(word)) else [word]
        for alternative in alternatives:
            try:
                sources.specs.append((yield from _resolve_one(alternative, sources)))
                break
            except BadInputError as error:
                if alternative == alternatives[-1]:
                    raise
                rest = "|".join(alternatives[alternatives.index(alternative) + 1 :])
                yield Notice(
                    f"{alternative} cannot be had, so the text is {rest} this time: {str(error).split(';')[0]}"
                )
    return sources


def fingerprint(files: Sequence[SourceFile]) -> Generator[PreparationEvent, None, str]:
    """A hash of the bytes, names and order of `files`: the same text under the same names has the same."""
    digest = hashlib.sha256()
    total, done = sum(_size(file.path) for file in files), 0
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hash, files) if total > MANY_BYTES and total > len(files) * 65536 else map(_hash, files)
        for file, content in zip(files, hashes, strict=True):
            digest.update(f"{file.path.name}\0{file.members}\0{file.is_named}\0{content}\n".encode(errors="replace"))
            done += _size(file.path)
            yield StageProgress("checking", done, total)
    return digest.hexdigest()


def _resolve_one(word: str, sources: Sources) -> Generator[PreparationEvent, None, str]:
    """Add the files of one source; returns the word that gives them again."""
    path = user_path(word)
    if word == STDIN:
        path = yield from _keep_stdin()
        sources.files.append(SourceFile(path))
        return str(path)
    if os.path.isdir(path):
        found = list(_walk(path, sources.skipped))
        if not found:
            raise BadInputError(f"{word}: no file found in this folder{_skipped_text(sources.skipped)}")
        sources.files += found
    elif os.path.exists(path):
        sources.files.append(SourceFile(path))
    elif word in DATASETS:
        fetched = yield from fetch(word)
        sources.files += (SourceFile(file.path, file.members) for file in fetched.train)
        sources.val_files += (SourceFile(file.path, file.members) for file in fetched.val)
    elif word.startswith(ADDRESS):
        address_path = yield from fetch_address(word)
        sources.files.append(SourceFile(address_path))
    elif word.startswith(HUB):
        hub_files = yield from fetch_from_hub(word.removeprefix(HUB))
        sources.files += map(SourceFile, hub_files)
    elif glob.has_magic(word):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise BadInputError(f"{word}: no file matches (looked in {Path.cwd()})")
        for match in map(Path, matches):
            sources.files += _walk(match, sources.skipped) if match.is_dir() else [SourceFile(match, is_named=False)]
    else:
        raise BadInputError(
            f"no such file or folder: {word} (looked in {Path.cwd()}); known texts are {', '.join(DATASETS)} "
            "(tiny-gpt data list); others are named by path, pattern, - for standard input, "
            "an https:// address or hf:OWNER/NAME"
        )
    return word


def _walk(folder: Path, skipped: Counter[str]) -> Iterator[SourceFile]:
    """The files below `folder` in the order of their names, each once however many links lead to it."""
    seen: set[tuple[int, int]] = set()

    def walk(place: str) -> Iterator[SourceFile]:
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            skipped[f"folder that cannot be read ({error.strerror})"] += 1
            return
        for entry in found:
            if entry.name.startswith("."):
                skipped["hidden"] += 1
                continue
            try:
                status = entry.stat()
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:
                skipped["link that leads nowhere"] += 1
                continue
            key = (status.st_dev, status.st_ino)
            if key in seen and status.st_ino:
                skipped["another name of a file or folder already read"] += 1
                continue
            if is_folder:
                seen.add(key)
                yield from walk(entry.path)
            elif is_file:
                seen.add(key)
                yield SourceFile(Path(entry.path), is_named=False)
            else:
                skipped["no regular file"] += 1

    status = os.stat(folder)
    seen.add((status.st_dev, status.st_ino))
    yield from walk(str(folder))


def _skipped_text(skipped: Counter[str]) -> str:
    return "; skipped: " + ", ".join(f"{n:,} {reason}" for reason, n in skipped.items()) if skipped else ""


def _keep_stdin() -> Generator[PreparationEvent, None, Path]:
    """Standard input as a file in the cache, named by its content so that a later run finds it again."""
    if sys.stdin is None or sys.stdin.closed:
        raise BadInputError("-: there is no standard input to read")
    if sys.stdin.isatty():
        yield Notice("reading the text that you type; Ctrl+D on a line of its own ends it (Windows: Ctrl+Z, Enter)")
    folder = cache_folder() / "downloads"
    path = folder / f"stdin-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            done = 0
            while piece := sys.stdin.buffer.read(1 << 20):
                file.write(piece)
                done += len(piece)
                yield StageProgress("reading standard input", done, None)
        if path.stat().st_size == 0:
            path.unlink()
            raise BadInputError("-: nothing came from standard input; pipe some text in, such as: cat *.txt | ...")
        kept = path.with_name(f"stdin-{sha256_of(path)[:16]}.txt")
        shutil.move(path, kept)
    except OSError as error:
        raise write_error(path, error) from error
    return kept


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hash(file: SourceFile) -> str:
    """The hash of a file's bytes; where it cannot be read the reason, which reading it will tell."""
    try:
        return sha256_of(file.path)
    except OSError as error:
        return f"unreadable: {error.errno}"
