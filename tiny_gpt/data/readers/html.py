"""Web pages to readable text: paragraphs separated by empty lines; no scripts, menus or tags.

libxml2 (by lxml) parses, as a stream: it was made for broken pages, its time grows with the length of the page, and it
needs no memory for a tree. What of a page is left out is counted. Measurements: docs/log/data.md.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from lxml import etree

from tiny_gpt.data.readers.base import Document, ReadContext, UnreadableError
from tiny_gpt.data.readers.encodings import xml_encoding
from tiny_gpt.data.readers.text import decoded_pieces

# Elements without text to read.
SILENT_TAGS = set("script style head template annotation annotation-xml".split())
# Elements of a page's frame: left out, unless a paragraph or an article begins within them.
FRAME_TAGS = set("nav button select iframe noscript svg".split())
# What a menu does not contain: text begins, though the menu was never closed.
ARTICLE_TAGS = set("p article main blockquote pre".split())
# Elements that begin a new line.
BLOCK_TAGS = set(
    "address article aside blockquote dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr li main ol p pre section table tr ul title body".split()
)
# Blocks with an empty line around them.
PARAGRAPH_TAGS = set("p blockquote h1 h2 h3 h4 h5 h6 ul ol table pre section article figure".split())
VOID_TAGS = set("area base br col embed hr img input link meta source track wbr".split())
# Where a page declares its encoding, in its first bytes.
META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s{0,9}=\s{0,9}[\"']?([\w-]+)", re.IGNORECASE)
META_SEARCH_BYTES = 4096
# <title/> and <a id="x"/> are complete elements in XHTML, which books are made of; HTML has no such thing.
SELF_CLOSED = re.compile(r"<([A-Za-z][\w:-]{0,30}+)([^<>]*+)(?<=/)>")
# Characters given to the parser at once, and characters collected before they are yielded.
FEED_SIZE, YIELD_SIZE = 1 << 16, 1 << 20
# An end tag without a start tag makes libxml2 look through all open elements: 7 ns each (2 cores of an EPYC). This many
# looks are some seconds; real pages need thousands.
MAX_LOOKS = 1_000_000_000


def read_html(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The page is one document. Raises UnreadableError."""
    yield html_pieces(decoded_pieces(raw, context, declared_encoding), context)


def declared_encoding(first_piece: bytes) -> str:
    """The label of the encoding that a page declares; empty if it declares none."""
    if label := xml_encoding(first_piece):
        return label
    found = META_CHARSET.search(first_piece[:META_SEARCH_BYTES])
    return found[1].decode("ascii", "replace") if found else ""


def html_text(html: str, context: ReadContext | None = None) -> str:
    """The readable text of a page: "<p>One<p>Two &amp; <b>three</b>" -> "One\\n\\nTwo & three\\n"."""
    return "".join(html_pieces([html], context or ReadContext("page")))


def html_pieces(pieces: Iterable[str], context: ReadContext) -> Iterator[str]:
    """The readable text of a page that comes in pieces, in pieces. Raises UnreadableError for a malicious page."""
    page = _Page()
    parser = etree.HTMLParser(target=page, recover=True, huge_tree=True, encoding="utf-8")
    layout = _Layout()
    n_looks = 0
    for piece in _cut_before_tags(pieces):
        page.peak_depth = page.depth
        _feed(parser, SELF_CLOSED.sub(_as_pair, piece))
        n_looks += piece.count("</") * page.peak_depth
        if n_looks > MAX_LOOKS:
            raise _too_deep(context, page.peak_depth)
        if page.n_characters > YIELD_SIZE:
            yield layout.text(*page.take())
    is_unclosed = page.is_silent
    _feed(parser, None)
    yield layout.text(*page.take(), is_end=True)
    if is_unclosed and page.n_silent:
        context.change("characters in a script or head that never ends, left out of web pages", page.n_silent)
    if layout.is_empty:  # a page that is all menu
        yield _Layout().text("".join(page.frame_parts), has_pre=False, is_end=True)
    else:
        context.change("characters of menus, forms and drawings left out of web pages", page.n_frame)


def _cut_before_tags(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces of about FEED_SIZE that end before a tag, if there is one, so that none is cut in two."""
    rest = ""
    for whole in pieces:
        for start in range(0, len(whole), FEED_SIZE):
            piece = rest + whole[start : start + FEED_SIZE]
            cut = piece.rfind("<")
            if cut < len(piece) - FEED_SIZE or cut <= 0:
                cut = len(piece)
            yield piece[:cut]
            rest = piece[cut:]
    yield rest


def _feed(parser: "etree.HTMLParser", piece: str | None) -> None:
    """Give the parser more of the page; None ends it. Whatever it objects to, it has passed on what it could read."""
    with contextlib.suppress(etree.LxmlError):
        if piece is None:
            parser.close()
        elif piece:
            parser.feed(piece.encode())


def _as_pair(match: re.Match[str]) -> str:
    """<title/> -> <title></title>; <br/> stays."""
    name = match[1]
    return match[0] if name.lower() in VOID_TAGS else f"<{name}{match[2][:-1]}></{name}>"


def _too_deep(context: ReadContext, depth: int) -> UnreadableError:
    return context.unreadable(
        "is not a readable web page", "html-too-deep", f"{depth:,} elements in one another", "save it as text first"
    )


class _Layout:
    """Joins the text of a page's parts: no spaces around line ends, at most one empty line, none at its ends."""

    def __init__(self) -> None:
        self.is_empty = True
        self._held = ""  # white space that the next text may follow

    def text(self, text: str, has_pre: bool, is_end: bool = False) -> str:
        """The next part of the page's text, in its final form."""
        text = self._held + text
        if not has_pre:  # within <pre>, spaces around line ends are part of the text
            text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
        text = re.sub(r"\n{3,}", "\n\n", text)
        if self.is_empty:
            text = text.lstrip()
        body = text.rstrip()
        self._held = text[len(body) :]
        self.is_empty = self.is_empty and not body
        return body + "\n" if is_end and not self.is_empty else body


class _Page:
    """What the parser calls for each tag and text; collects the readable text."""

    def __init__(self) -> None:
        self.depth = self.peak_depth = 0
        """Elements that are open, and the most of them."""
        self.n_characters = self.n_frame = self.n_silent = 0
        """Of the readable text not yet taken, of what was left out, and within the elements of SILENT_TAGS now open."""
        self.frame_parts: list[str] = []
        """The beginning of the text in FRAME_TAGS."""
        self._parts: list[str] = []
        self._last = "\n"
        self._has_pre = False
        self._n_pre = self._n_silent_open = 0
        self._frames: list[str] = []

    @property
    def is_silent(self) -> bool:
        """Whether an element without text to read is open."""
        return self._n_silent_open > 0

    def take(self) -> tuple[str, bool]:
        """The readable text since the last call, and whether there is preformatted text in it."""
        text, has_pre = "".join(self._parts), self._has_pre
        self._parts, self._has_pre, self.n_characters = [], self._n_pre > 0, 0
        return text, has_pre

    def start(self, tag: str, attributes: object) -> None:
        self.depth += 1
        self.peak_depth = max(self.peak_depth, self.depth)
        if tag in SILENT_TAGS:
            if not self._n_silent_open:
                self.n_silent = 0
            self._n_silent_open += 1
        elif tag in FRAME_TAGS:
            self._frames.append(tag)
        elif tag in ARTICLE_TAGS and self._frames == ["nav"]:
            self._frames.clear()
        self._break(tag)
        if tag == "pre":
            self._n_pre += 1
            self._has_pre = True

    def end(self, tag: str) -> None:
        self.depth -= 1
        if tag in SILENT_TAGS:
            self._n_silent_open -= 1
        elif self._frames and tag == self._frames[-1]:
            self._frames.pop()
        if tag == "pre":
            self._n_pre -= 1
        if tag != "br":
            self._break(tag)

    def data(self, text: str) -> None:
        if self._n_silent_open:
            self.n_silent += len(text)
            return
        if self._frames:
            if text := " ".join(text.split()):
                if self.n_frame < YIELD_SIZE:
                    self.frame_parts.append(text + "\n")
                self.n_frame += len(text)
            return
        if not self._n_pre:  # white space collapses, also across elements
            text = re.sub(r"[ \t\n\r\f]+", " ", text)
            if self._last in " \n":
                text = text.removeprefix(" ")
        self._add(text)

    def comment(self, text: str) -> None:
        """Comments are no text."""

    def pi(self, target: str, data: str | None = None) -> None:
        """Processing instructions are no text."""

    def close(self) -> None:
        """Called when the page ends."""

    def _add(self, text: str) -> None:
        if text:
            self._parts.append(text)
            self._last = text[-1]
            self.n_characters += len(text)

    def _break(self, tag: str) -> None:
        """Separate what comes next as the tag demands: by a space, a line end or an empty line."""
        if self._n_silent_open or self._frames:
            return
        if tag == "br":
            self._add("\n")
        elif tag in ("td", "th") and self._last not in " \n":
            self._add(" ")
        elif tag in PARAGRAPH_TAGS:
            self._add("\n\n")
        elif tag in BLOCK_TAGS and self._last != "\n":
            self._add("\n")
