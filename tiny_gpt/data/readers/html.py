"""Web pages to readable text: paragraphs separated by empty lines; no scripts, menus or tags."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import BinaryIO

from tiny_gpt.data.readers.base import Document, ReadContext, ReadOptions, in_pieces
from tiny_gpt.data.readers.text import decoded_pieces, has_byte_order_mark
from tiny_gpt.errors import BadInputError

# Elements without readable text.
SKIPPED_TAGS = set("script style head nav template svg noscript button select iframe math".split())
# Elements that begin a new line.
BLOCK_TAGS = set(
    "address article aside blockquote dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr li main ol p pre section table tr ul title body".split()
)
# Blocks with an empty line around them.
PARAGRAPH_TAGS = set("p blockquote h1 h2 h3 h4 h5 h6 ul ol table pre section article figure".split())
# Where a page declares its encoding, in its first bytes.
META_CHARSET = re.compile(rb"<meta[^>]{0,200}charset=[\"']?([\w-]+)", re.IGNORECASE)
META_SEARCH_BYTES = 4096


def read_html(raw: BinaryIO, context: ReadContext) -> Iterator[Document]:
    """The page is one document. The encoding is that of --encoding, a byte order mark, or the page's own <meta>."""
    content = raw.read()
    declared = META_CHARSET.search(content[:META_SEARCH_BYTES])
    if declared and context.options.encoding is None and not has_byte_order_mark(content):
        try:
            options = ReadOptions(context.options.text_field, declared[1].decode())
            context = replace(context, options=options)
        except BadInputError:
            context.skip("web page with an unknown encoding, read as UTF-8")
    yield in_pieces(html_text("".join(decoded_pieces(io.BytesIO(content), context))))


def html_text(html: str) -> str:
    """The readable text of a page: "<p>One<p>Two &amp; <b>three</b>" -> "One\\n\\nTwo & three\\n"."""
    parser = _TextExtractor()
    parser.feed(html)
    parser.close()
    text = "".join(parser.parts)
    if not parser.has_pre:  # within <pre>, spaces around line ends are part of the text
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    return text + "\n" if text else ""


class _TextExtractor(HTMLParser):
    """Collects the readable text in `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.has_pre = False
        # How many elements of each kind are open.
        self._skipped_depth = 0
        self._pre_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in SKIPPED_TAGS:
            self._skipped_depth += 1
        elif tag == "body":
            self._skipped_depth = 0  # ends a <head> that was not closed
        self._break(tag)
        if tag == "pre":
            self._pre_depth += 1
            self.has_pre = True

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED_TAGS:
            self._skipped_depth = max(0, self._skipped_depth - 1)
        if tag == "pre":
            self._pre_depth = max(0, self._pre_depth - 1)
        self._break(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._skipped_depth:
            return
        if not self._pre_depth:  # white space collapses, also across elements
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if not self.parts or self.parts[-1].endswith((" ", "\n")):
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        """Separate what comes next as the tag demands: by a space, a line end or an empty line."""
        if self._skipped_depth:
            return
        if tag == "br":
            self.parts.append("\n")
        elif tag in ("td", "th"):
            self.parts.append(" ")
        elif tag in BLOCK_TAGS and self.parts:
            if tag in PARAGRAPH_TAGS:
                self.parts.append("\n\n")
            elif not self.parts[-1].endswith("\n"):
                self.parts.append("\n")
