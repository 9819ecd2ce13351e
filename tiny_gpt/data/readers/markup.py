"""Web pages and electronic books to readable text: paragraphs apart, no scripts, menus or tags."""

import re
import zipfile
import zlib
from html.parser import HTMLParser
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote
from xml.etree import ElementTree

from tiny_gpt.errors import BadInputError

LEFT_OUT = {"script", "style", "head", "nav", "template", "svg", "noscript", "button", "select", "iframe", "math"}
BLOCKS = set(
    "address article aside blockquote dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr li main ol p pre section table tr ul title body".split()
)
# Blocks with an empty line around them; the others only begin a line.
PARAGRAPHS = set("p blockquote h1 h2 h3 h4 h5 h6 ul ol table pre section article figure".split())
# A chapter of a book is smaller; what unpacks to more is no book.
MAX_CHAPTER_BYTES = 64 << 20


def html_text(html: str) -> str:
    """The readable text of a page: "<p>One<p>Two &amp; <b>three</b>" -> "One\\n\\nTwo & three\\n"."""
    parser = _TextParser()
    parser.feed(html)
    parser.close()
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", "".join(parser.parts)) if not parser.has_pre else "".join(parser.parts)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return text + "\n" if text else ""


class _TextParser(HTMLParser):
    """Collects text in `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.has_pre = False
        self._left_out = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in LEFT_OUT:
            self._left_out += 1
        elif tag == "body":
            self._left_out = 0  # a head that was not closed ends here
        self._break(tag)
        if tag == "pre":
            self._pre += 1
            self.has_pre = True

    def handle_endtag(self, tag: str) -> None:
        if tag in LEFT_OUT:
            self._left_out = max(0, self._left_out - 1)
        if tag == "pre":
            self._pre = max(0, self._pre - 1)
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._left_out:
            return
        if not self._pre:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if not self.parts or self.parts[-1].endswith((" ", "\n")):
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if self._left_out:
            return
        if tag == "br":
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")
        elif tag in BLOCKS and self.parts:
            self.parts.append("\n\n" if tag in PARAGRAPHS else "" if self.parts[-1].endswith("\n") else "\n")


def epub_text(raw: BinaryIO, name: str) -> str:
    """The chapters of a book in their order, an empty line between them. Raises BadInputError."""
    try:
        with zipfile.ZipFile(raw) as book:
            if "META-INF/encryption.xml" in book.namelist() and b"EncryptedData" in _member(
                book, "META-INF/encryption.xml"
            ):
                protected = re.findall(rb'CipherReference[^>]*URI="([^"]+)"', _member(book, "META-INF/encryption.xml"))
                if any(uri.lower().endswith((b".html", b".xhtml", b".htm", b".opf")) for uri in protected):
                    raise BadInputError(f"{name} is copy-protected; give a book without such protection")
            chapters = [html_text(_decoded(_member(book, path))) for path in _spine(book)]
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, EOFError, OSError, ValueError, zlib.error) as error:
        raise BadInputError(f"{name} is no readable book ({error}); get it anew or save it as text") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression or encryption that Python does not know
        raise BadInputError(f"{name} cannot be unpacked ({error}); save it as text first") from error
    return "\n".join(chapter for chapter in chapters if chapter)


def _spine(book: zipfile.ZipFile) -> list[str]:
    """The chapters' names in reading order."""
    container = _xml(_member(book, "META-INF/container.xml"))
    rootfile = container.find(".//{*}rootfile")
    if rootfile is None:
        raise ValueError("it names no contents")
    opf_path = rootfile.attrib["full-path"]
    package = _xml(_member(book, opf_path))
    href_of = {item.attrib["id"]: item.attrib["href"] for item in package.iterfind(".//{*}manifest/{*}item")}
    folder = PurePosixPath(opf_path).parent
    paths = [str(folder / unquote(href_of[ref.attrib["idref"]])) for ref in package.iterfind(".//{*}itemref")]
    return [path for path in paths if path in book.namelist()]


def _xml(content: bytes) -> ElementTree.Element:
    if b"<!ENTITY" in content:
        raise ValueError("its contents define entities")
    return ElementTree.fromstring(content)


def _member(book: zipfile.ZipFile, path: str) -> bytes:
    with book.open(path) as file:
        content = file.read(MAX_CHAPTER_BYTES + 1)
    if len(content) > MAX_CHAPTER_BYTES:
        raise ValueError(f"{path} unpacks to more than {MAX_CHAPTER_BYTES >> 20} MiB")
    return content


def _decoded(chapter: bytes) -> str:
    if chapter.startswith((b"\xff\xfe", b"\xfe\xff")):
        return chapter.decode("utf-16", "replace")
    return chapter.decode("utf-8-sig", "replace")
