"""Electronic books (EPUB): a zip archive of web pages, the chapters, whose order a package file gives.

The format: https://www.w3.org/TR/epub-33. META-INF/container.xml names the package file (.opf); its manifest maps ids
to files, its spine lists the ids in reading order.
"""

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from lxml import etree

from tiny_gpt.data.readers.base import Document, ReadContext, UnreadableError
from tiny_gpt.data.readers.compression import DAMAGE_ERRORS
from tiny_gpt.data.readers.html import declared_encoding, html_pieces
from tiny_gpt.data.readers.limits import budgeted
from tiny_gpt.data.readers.text import decoded_pieces

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
# Package files of real books are smaller; a chapter may be as large as the file may unpack to.
MAX_PACKAGE_BYTES = 64 << 20
MALFORMED = (zipfile.BadZipFile, KeyError, etree.LxmlError, EOFError, OSError, ValueError, zlib.error)
CHAPTER_SUFFIXES = (".html", ".xhtml", ".htm", ".xml")


def read_epub(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The book is one document: its chapters in order, separated by empty lines. Raises UnreadableError."""
    yield _book_pieces(raw, context)


def _book_pieces(raw: BinaryIO, context: ReadContext) -> Iterator[str]:
    try:
        with zipfile.ZipFile(raw) as book:
            if _is_copy_protected(book, context):
                raise context.unreadable("is copy-protected", "epub-copy-protected", remedy="give a book that is not")
            has_text = False
            for path in _chapter_paths(book, context):
                is_new = True
                for piece in _chapter_pieces(book, path, context):
                    yield "\n" + piece if is_new and has_text else piece
                    has_text, is_new = True, False
    except MALFORMED as error:
        raise context.unreadable(
            "is not a readable EPUB book", "epub-malformed", str(error), "download it again or save it as text"
        ) from error
    except (NotImplementedError, RuntimeError) as error:  # a compression or encryption unknown to Python
        raise context.unreadable(
            "cannot be unpacked", "epub-not-unpackable", str(error), "save it as text first"
        ) from error


def _chapter_pieces(book: zipfile.ZipFile, path: str, context: ReadContext) -> Iterator[str]:
    """The text of one chapter. One that is damaged is counted."""
    try:
        with book.open(path) as file:
            chapter = budgeted(file, context.budget)
            for piece in html_pieces(decoded_pieces(chapter, context, declared_encoding), context):
                if piece:
                    yield piece
    except (UnreadableError, *DAMAGE_ERRORS) as error:
        reason = error.reason if isinstance(error, UnreadableError) else "is damaged"
        context.skip(f"chapters of a book: {reason}", where=path)


def _is_copy_protected(book: zipfile.ZipFile, context: ReadContext) -> bool:
    """Whether chapters are encrypted; fonts may be."""
    if ENCRYPTION not in book.namelist():
        return False
    encryption = _parse_xml(_member(book, ENCRYPTION, context))
    uris = [reference.get("URI", "").lower() for reference in encryption.iterfind(".//{*}CipherReference")]
    return any(uri.endswith((*CHAPTER_SUFFIXES, ".opf")) for uri in uris)


def _chapter_paths(book: zipfile.ZipFile, context: ReadContext) -> list[str]:
    """The chapters' names in the archive, in reading order. What is not found is counted. Raises one of MALFORMED."""
    rootfile = _parse_xml(_member(book, CONTAINER, context)).find(".//{*}rootfile")
    if rootfile is None:
        raise ValueError("its container names no package file")
    names = _Names(book)
    opf_path = names.find(rootfile.get("full-path", ""))
    if opf_path is None:
        raise ValueError(f"its package file {rootfile.get('full-path')!r} is not in it")
    package = _parse_xml(_member(book, opf_path, context))
    href_of = {item.get("id"): item.get("href", "") for item in package.iterfind(".//{*}manifest/{*}item")}
    folder = posixpath.dirname(opf_path.replace("\\", "/"))  # hrefs are relative to the package file
    paths = []
    for reference in package.iterfind(".//{*}itemref"):
        href = href_of.get(reference.get("idref"), "")
        path = names.find(href, folder)
        if path is None:
            context.skip("chapters that are not in the book's archive", where=href or str(reference.get("idref")))
        else:
            paths.append(path)
    if not paths:
        paths = names.chapters()
        context.change("books without a list of chapters, read in the order of their files", int(bool(paths)))
    return paths


class _Names:
    """The files of a book by the names that its package uses for them."""

    def __init__(self, book: zipfile.ZipFile) -> None:
        self._names = book.namelist()
        self._exact = {name.replace("\\", "/"): name for name in self._names}
        # Windows and macOS find a file whatever the case of its name, so books are made with the wrong one.
        self._by_lower_case = {name.lower(): original for name, original in reversed(self._exact.items())}

    def find(self, href: str, folder: str = "") -> str | None:
        """The file that a browser would open for `href` on a page in `folder`; None if there is none."""
        try:
            path = unquote(urlsplit(href.replace("\\", "/")).path)
        except ValueError:
            return None
        # As at the root of a site, ".." at the root stays there.
        absolute = posixpath.normpath(posixpath.join("/", folder, path)).lstrip("/")
        return self._exact.get(absolute) or self._by_lower_case.get(absolute.lower()) or self._exact.get(href)

    def chapters(self) -> list[str]:
        """All web pages, in the order of their names."""
        return sorted(name for name in self._names if name.lower().endswith(CHAPTER_SUFFIXES[:3]))


def _parse_xml(content: bytes) -> etree._Element:
    """The root element; entities that a file defines are not expanded, and files that it names not opened."""
    parser = etree.XMLParser(recover=True, resolve_entities=False, no_network=True, load_dtd=False)
    root = etree.fromstring(content, parser)
    if root is None:
        raise ValueError("it holds XML that cannot be read")
    return root


def _member(book: zipfile.ZipFile, path: str, context: ReadContext) -> bytes:
    with book.open(path) as file:
        content = budgeted(file, context.budget).read(MAX_PACKAGE_BYTES + 1)
    if len(content) > MAX_PACKAGE_BYTES:
        raise ValueError(f"{path} unpacks to more than {MAX_PACKAGE_BYTES >> 20} MiB")
    return content
