"""Sources to one text: every file read through its format, nothing left out without being counted and told."""

import contextlib
import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.data.progress import PreparationEvent, StageProgress
from tiny_gpt.data.readers.formats import DAMAGE, ReadOptions, read_documents
from tiny_gpt.data.sources.resolve import SourceFile
from tiny_gpt.data.text_file import TextFile, TextWriter
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import write_error

# A progress step each so many bytes of text.
TELL_BYTES = 4 << 20


@dataclass(frozen=True)
class Corpus:
    """A text and what was left out of it."""

    text: TextFile
    n_source_bytes: int
    skipped: Counter[str]
    """Reason -> number of files of folders, or of records."""
    examples: dict[str, str]
    """Reason -> the first file that was left out for it."""


def read_corpus(
    files: Sequence[SourceFile], into: Path, options: ReadOptions
) -> Generator[PreparationEvent, None, Corpus]:
    """Write all text of `files` to the new file `into`.

    Raises BadInputError for a named file that is no text or empty, for a file that changes while it is read, and
    where there is no text at all; OutOfResourcesError when `into` cannot be written.
    """
    try:
        writer = TextWriter(into)
    except OSError as error:
        raise write_error(into, error) from error
    skipped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    total, done, last_reason = _total_bytes(files), 0, ""
    try:
        for file in files:
            start = writer.mark()
            notes: Counter[str] = Counter()
            try:
                for position in _read(file, writer, options, notes):
                    yield StageProgress("reading", done + position, total)
                if writer.mark() == start:
                    raise BadInputError(f"{file.path} is empty: give a file with some text in it")
                skipped += notes
            except BadInputError as error:
                if file.is_named:
                    raise
                writer.go_back(start)
                last_reason = str(error)
                skipped[reason := _reason(error, file)] += 1
                examples.setdefault(reason, file.path.name)
            done += _total_bytes([file])
            yield StageProgress("reading", done, total)
    finally:
        text = writer.close()
    if len(text.documents) == 0:
        raise BadInputError(f"no text found in {len(files):,} files{'; ' + last_reason if last_reason else ''}")
    return Corpus(text, total, skipped, examples)


def _read(
    file: SourceFile, writer: TextWriter, options: ReadOptions, notes: Counter[str]
) -> Generator[int, None, None]:
    """Write the documents of one file; yields how far in the file it is."""
    try:
        before = file.state()
        with open(file.path, "rb") as raw:
            told = 0
            for document in read_documents(raw, str(file.path), options, notes, members=file.members):
                writer.begin()
                for piece in document:
                    writer.write(piece)
                    if raw.tell() - told > TELL_BYTES:
                        told = raw.tell()
                        yield told
                writer.end()
        changed = file.state() != before
    except DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise BadInputError(f"{file.path} is damaged or cut short ({reason}); get it anew") from error
    except OSError as error:
        raise BadInputError(f"cannot read {file.path}: {error.strerror or error}") from error
    if changed:
        raise BadInputError(f"{file.path} changed while it was read: start again when it is complete, or give a copy")


def _total_bytes(files: Sequence[SourceFile]) -> int:
    """Their sizes on the disk; one that cannot be looked at counts nothing, reading it will tell why."""
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.state()[0]
    return total


def _reason(error: BadInputError, file: SourceFile) -> str:
    """An error as the reason for a count: without the name of the file and without advice."""
    reason = str(error).replace(str(file.path), "file").removeprefix("file: ").split(";")[0].split(": ")[0]
    reason = reason.split(" but ")[0]
    reason = re.sub(r"\s*\([^)]*\)", "", reason)
    return re.sub(r"\bline [\d,]+ ", "a line ", reason).removeprefix("file ").strip()
