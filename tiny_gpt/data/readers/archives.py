"""Zip archives: each file inside is read as if it stood alone."""

import fnmatch
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import BinaryIO, cast

from tiny_gpt.data.readers.base import Document, ReadContext, Reader, UnreadableError


def read_zip(raw: BinaryIO, context: ReadContext, read_member: Reader) -> Iterator[Document]:
    """The documents of all members that match `context.members`, in the order of their names.

    A member that `read_member` finds unreadable is counted, unless it is the only one. Raises UnreadableError.
    """
    with zipfile.ZipFile(raw) as archive:
        names = sorted(
            member.filename
            for member in archive.infolist()
            if not member.is_dir() and fnmatch.fnmatch(member.filename, context.members)
        )
        if not names:
            pattern = "" if context.members == "*" else f" {context.members}"
            raise context.unreadable(f"contains no file{pattern}", "archive-empty")
        for name in names:
            member_context = replace(context, name=f"{context.name}/{name}", members="*")
            try:
                with archive.open(name) as file:
                    for document in read_member(cast(BinaryIO, file), member_context):
                        pieces = iter(document)
                        first = list(islice(pieces, 1))  # a member that is not text raises here, before it is begun
                        yield chain(first, pieces)
            except (RuntimeError, NotImplementedError) as error:  # encrypted, or a compression unknown to Python
                raise member_context.unreadable(
                    "cannot be unpacked", "archive-member-not-unpackable", str(error), "unpack the archive first"
                ) from error
            except UnreadableError as error:
                if len(names) == 1:
                    raise
                context.skip(f"file in a .zip: {error.reason}"[:100])
