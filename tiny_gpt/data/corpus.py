"""Source files to one text file, split for training and validation. Whatever is left out is counted."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.config import DataConfig
from tiny_gpt.data.kinds import LOOKED_AT, Kinds
from tiny_gpt.data.overlap import HeldOut
from tiny_gpt.data.progress import Preparation, StageProgress
from tiny_gpt.data.readers.base import ReadContext, ReadOptions, UnreadableError
from tiny_gpt.data.readers.compression import DAMAGE_ERRORS
from tiny_gpt.data.readers.limits import UnpackBudget, UnpackLimitError, allowed_bytes, parse_size
from tiny_gpt.data.readers.registry import read_documents
from tiny_gpt.data.sources.files import SourceFile
from tiny_gpt.data.sources.resolve import Sources
from tiny_gpt.data.text_file import TextFile, TextSplit, TextWriter
from tiny_gpt.errors import BadInputError
from tiny_gpt.files import write_error

# Bytes of a file between two progress events.
PROGRESS_BYTES = 4 << 20
# Longer documents, which would take much memory, are not compared with what is held out.
COMPARED_CHARACTERS = 1 << 22
REPEATS_HELD_OUT = "documents that repeat the validation text, in whole or in part"


@dataclass(frozen=True)
class Corpus:
    """The text of some files, and what was left out of it."""

    text: TextFile
    n_source_bytes: int
    """Size of the files on disk."""
    skipped: Counter[str]
    """Reason -> number of files in folders, or of records, that were left out."""
    changed: Counter[str]
    """Reason -> number of characters that were replaced or dropped."""
    examples: dict[str, str]
    """Reason -> the first file, and place in it, where it was met."""
    kinds: Kinds
    """What the text is made of."""


def read_splits(
    config: DataConfig, sources: Sources, folder: Path, held_out: HeldOut | None = None
) -> Preparation[tuple[list[Corpus], TextSplit, TextSplit]]:
    """Read all text of `sources` into files in `folder`. Returns what was read, and its training and validation split.

    Leaves out passages of `held_out`, the validation text of another corpus. Raises what `read_corpus` raises.
    """
    options = read_options(config)
    corpus = yield from read_corpus(sources.files, folder / "text", options, held_out)
    if not sources.val_files:
        return [corpus], *corpus.text.split(config.val_fraction)
    val_corpus = yield from read_corpus(sources.val_files, folder / "val-text", options)
    return [corpus, val_corpus], corpus.text.whole(), val_corpus.text.whole()


def read_options(config: DataConfig) -> ReadOptions:
    """How the user wants files to be read. Raises BadInputError."""
    max_unpacked = parse_size(config.max_unpacked) if config.max_unpacked else 0
    return ReadOptions(config.text_field, config.encoding or None, max_unpacked)


def read_corpus(
    files: Sequence[SourceFile], path: Path, options: ReadOptions, held_out: HeldOut | None = None
) -> Preparation[Corpus]:
    """Write the text of all `files` to the new file `path`, without passages of `held_out`.

    Raises UnreadableError for a file the user named that is empty, is not text, or changes while it is read;
    BadInputError if there is no text at all; OutOfResourcesError if `path` cannot be written.
    """
    try:
        writer = TextWriter(path)
    except OSError as error:
        raise write_error(path, error) from error
    skipped: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    examples: dict[str, str] = {}
    kinds = Kinds()
    last_error: UnreadableError | None = None
    total_bytes, done_bytes = sum(map(_size, files)), 0
    try:
        for file in files:
            start = writer.position()
            budget = UnpackBudget(allowed_bytes(_size(file), options.max_unpacked))
            context = ReadContext(str(file.path), options, file.members, file.declared_encoding, budget)
            beginning: list[str] = []
            try:
                for n_read in _copy_documents(file, writer, context, beginning, held_out):
                    yield StageProgress("reading", done_bytes + n_read, total_bytes)
                # Documents of white space are dropped, so nothing may be left of a file that is not empty.
                if writer.position() == start and REPEATS_HELD_OUT in context.skipped:
                    remedy = "give other text, or --first none"
                    raise context.unreadable("holds only the validation text", "first-is-held-out", remedy=remedy)
                if writer.position() == start:
                    lost = ", ".join(f"{n:,} {reason}" for reason, n in (context.skipped + context.changed).items())
                    raise context.unreadable("is empty", "file-empty", lost, "give a file with some text in it")
                kinds.add(file.path, writer.position().n_bytes - start.n_bytes, "".join(beginning)[:LOOKED_AT])
                skipped += context.skipped
                changed += context.changed
                examples = context.examples | examples
            except UnreadableError as error:
                if file.is_named:
                    raise
                writer.truncate(start)  # the documents that were read before the fault are dropped too
                skipped[error.reason] += 1
                examples.setdefault(error.reason, file.path.name)
                last_error = error
            done_bytes += _size(file)
            yield StageProgress("reading", done_bytes, total_bytes)
    finally:
        text = writer.close()
    if len(text.documents) == 0:
        detail = f"; {last_error}" if last_error else ""
        raise BadInputError(f"no text found in {len(files):,} files{detail}", code="no-text-found")
    return Corpus(text, total_bytes, skipped, changed, examples, kinds)


def skipped_lines(corpora: Sequence[Corpus]) -> list[str]:
    """What was left out of `corpora` or changed in it, one line per reason, the most frequent first."""
    examples = {reason: name for corpus in corpora for reason, name in corpus.examples.items()}
    skipped = sum((corpus.skipped for corpus in corpora), Counter[str]())
    changed = sum((corpus.changed for corpus in corpora), Counter[str]())
    return [*counted_lines("skipped", skipped, examples), *counted_lines("changed", changed, examples)]


def counted_lines(verb: str, counts: Counter[str], examples: dict[str, str]) -> list[str]:
    """One line per reason, the most frequent first: "skipped 2: is a PDF (such as a.pdf)"."""
    return [
        f"{verb} {n:,}: {reason}{f' (such as {examples[reason]})' if reason in examples else ''}"
        for reason, n in counts.most_common()
    ]


def _copy_documents(
    file: SourceFile, writer: TextWriter, context: ReadContext, beginning: list[str], held_out: HeldOut | None
) -> Iterator[int]:
    """Write the documents of one file; yields how many of its bytes have been read. Raises UnreadableError.

    `beginning` gets the first LOOKED_AT characters, or somewhat more.
    """
    n_looked_at = 0
    try:
        state_before = file.state()
        with open(file.path, "rb") as raw:
            reported = 0
            for document in read_documents(raw, context):
                start = writer.position()
                writer.begin_document()
                compared: str | None = "" if held_out else None
                for piece in document:
                    writer.write(piece)
                    if compared is not None:
                        compared = compared + piece if len(compared) < COMPARED_CHARACTERS else None
                    if n_looked_at < LOOKED_AT:
                        beginning.append(piece[:LOOKED_AT])
                        n_looked_at += len(piece)
                    # The position in the file on disk, also if it is compressed: progress is in bytes of the disk.
                    if raw.tell() - reported > PROGRESS_BYTES:
                        reported = raw.tell()
                        yield reported
                writer.end_document()
                if held_out and compared and (kept := held_out.removed_from(compared)) != compared:
                    context.skip(REPEATS_HELD_OUT)
                    writer.truncate(start)
                    writer.begin_document()
                    writer.write(kept)
                    writer.end_document()
        has_changed = file.state() != state_before
    except UnpackLimitError as error:
        raise context.unreadable(
            "unpacks to more than is allowed",
            "unpacks-to-too-much",
            f"{context.budget.max_bytes:,} bytes for this file",
            "if you trust it, allow more with --max-unpacked, such as --max-unpacked 80GB",
        ) from error
    except DAMAGE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise context.unreadable(
            "is damaged or incomplete", "file-damaged", reason, "download or copy it again"
        ) from error
    except OSError as error:
        raise context.unreadable("cannot be read", "file-unreadable", error.strerror or str(error)) from error
    if has_changed:
        remedy = "start again when it is complete, or give a copy"
        raise context.unreadable("changed while it was read", "file-changed", remedy=remedy)


def _size(file: SourceFile) -> int:
    """Size on disk; 0 if that is unknown, in which case reading the file raises the reason."""
    with contextlib.suppress(OSError):
        return file.state()[0]
    return 0
