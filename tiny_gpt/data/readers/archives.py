"""Zip and tar archives: each file inside is read as if it stood alone."""

import fnmatch
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from tiny_gpt.data.readers.base import Document, ReadContext, Reader, UnreadableError
from tiny_gpt.data.readers.compression import zip_damage
from tiny_gpt.data.readers.limits import budgeted

# What other systems put beside the files of an archive.
LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db")


def read_zip(raw: BinaryIO, context: ReadContext, read_member: Reader) -> Iterator[Document]:
    """The documents of all members that match `context.members`, in the order of their names.

    A member that `read_member` finds unreadable is counted, unless it is the only one. Raises UnreadableError.
    """
    try:
        with zip_damage():
            archive = zipfile.ZipFile(raw)
    except NotImplementedError as error:  # a version of the format that does not exist
        raise zipfile.BadZipFile(str(error)) from error
    with archive:
        members = {member.filename: member for member in archive.infolist() if _is_wanted(member.filename, context)}
        # A damaged name may be empty.
        names = sorted(name for name, member in members.items() if name and not member.is_dir())
        if not names:
            raise _empty(context)
        context.budget.require_left(sum(members[name].file_size for name in names))
        for name in names:
            member_context = replace(context, name=f"{context.name}/{name}", members="*")
            try:
                with zip_damage():
                    file = archive.open(name)
                with file:
                    yield from _documents(budgeted(file, context.budget), member_context, read_member)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression unknown to Python
                raise member_context.unreadable(
                    "cannot be unpacked", "archive-member-not-unpackable", str(error), "unpack the archive first"
                ) from error
            except UnreadableError as error:
                if len(names) == 1:
                    raise
                context.skip(f"files in an archive: {error.reason}"[:100], where=name)


def read_tar(raw: BinaryIO, context: ReadContext, read_member: Reader) -> Iterator[Document]:
    """The same for a tar archive, whose members are read in the order in which they are stored."""
    n_read, last_error = 0, None
    with tarfile.open(fileobj=raw, mode="r|") as archive:
        for member in archive:
            if not member.isfile() or not _is_wanted(member.name, context):
                continue
            n_read += 1
            member_context = replace(context, name=f"{context.name}/{member.name}", members="*")
            try:
                if file := archive.extractfile(member):
                    yield from _documents(cast(BinaryIO, file), member_context, read_member)
            except UnreadableError as error:
                last_error = error
                context.skip(f"files in an archive: {error.reason}"[:100], where=member.name)
    if not n_read:
        raise _empty(context)
    if n_read == 1 and last_error:
        raise last_error


def _is_wanted(name: str, context: ReadContext) -> bool:
    return fnmatch.fnmatch(name, context.members) and not set(PurePosixPath(name).parts).intersection(LITTER)


def _empty(context: ReadContext) -> UnreadableError:
    pattern = "" if context.members == "*" else f" {context.members}"
    return context.unreadable(f"contains no file{pattern}", "archive-empty")


def _documents(file: BinaryIO, context: ReadContext, read_member: Reader) -> Iterator[Document]:
    """The documents of one member. One that is not text raises UnreadableError before its document is begun."""
    for document in read_member(file, context):
        pieces = iter(document)
        first = list(islice(pieces, 1))
        yield chain(first, pieces)
