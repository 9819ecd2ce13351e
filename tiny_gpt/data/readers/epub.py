"""Electronic books (EPUB): a zip archive of web pages, the chapters, whose order a package file gives.

The format: https://www.w3.org/TR/epub-33. META-INF/container.xml names the package file (.opf); its manifest maps ids
to files, its spine lists the ids in reading order.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from tiny_gpt.data.readers.base import Document, ReadContext, in_pieces
from tiny_gpt.data.readers.html import html_text

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
# Chapters of real books are smaller.
MAX_CHAPTER_BYTES = 64 << 20
MALFORMED = (zipfile.BadZipFile, KeyError, ElementTree.ParseError, EOFError, OSError, ValueError, zlib.error)


def read_epub(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The book is one document: its chapters in order, separated by empty lines. Raises UnreadableError."""
    try:
        with zipfile.ZipFile(raw) as book:
            if _is_copy_protected(book):
                raise context.unreadable("is copy-protected", "epub-copy-protected", remedy="give a book that is not")
            chapters = [html_text(_decode(_member(book, path))) for path in _chapter_paths(book)]
    except MALFORMED as error:
        raise context.unreadable(
            "is not a readable EPUB book", "epub-malformed", str(error), "download it again or save it as text"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # a compression or encryption unknown to Python
        raise context.unreadable(
            "cannot be unpacked", "epub-not-unpackable", str(error), "save it as text first"
        ) from error
    yield in_pieces("\n".join(chapter for chapter in chapters if chapter))


def _is_copy_protected(book: zipfile.ZipFile) -> bool:
    """Whether chapters are encrypted; fonts may be."""
    if ENCRYPTION not in book.namelist():
        return False
    encryption = _member(book, ENCRYPTION)
    if b"EncryptedData" not in encryption:
        return False
    encrypted = re.findall(rb'CipherReference[^>]*URI="([^"]+)"', encryption)
    return any(uri.lower().endswith((b".html", b".xhtml", b".htm", b".opf")) for uri in encrypted)


def _chapter_paths(book: zipfile.ZipFile) -> list[str]:
    """The chapters' names in the archive, in reading order. Raises one of MALFORMED."""
    rootfile = _parse_xml(_member(book, CONTAINER)).find(".//{*}rootfile")
    if rootfile is None:
        raise ValueError("its container names no package file")
    opf_path = rootfile.attrib["full-path"]
    package = _parse_xml(_member(book, opf_path))
    href_of = {item.attrib["id"]: item.attrib["href"] for item in package.iterfind(".//{*}manifest/{*}item")}
    folder = PurePosixPath(opf_path).parent  # hrefs are relative to the package file
    paths = [str(folder / unquote(href_of[ref.attrib["idref"]])) for ref in package.iterfind(".//{*}itemref")]
    return [path for path in paths if path in book.namelist()]


def _parse_xml(content: bytes) -> ElementTree.Element:
    if b"<!ENTITY" in content:  # entities that contain entities expand exponentially
        raise ValueError("it defines XML entities")
    return ElementTree.fromstring(content)


def _member(book: zipfile.ZipFile, path: str) -> bytes:
    with book.open(path) as file:
        content = file.read(MAX_CHAPTER_BYTES + 1)
    if len(content) > MAX_CHAPTER_BYTES:
        raise ValueError(f"{path} unpacks to more than {MAX_CHAPTER_BYTES >> 20} MiB")
    return content


def _decode(chapter: bytes) -> str:
    if chapter.startswith((b"\xff\xfe", b"\xfe\xff")):
        return chapter.decode("utf-16", "replace")
    return chapter.decode("utf-8-sig", "replace")
