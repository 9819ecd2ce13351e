"""Web pages to readable text."""

import pytest

from tests.data.support import write_file
from tiny_gpt.data.readers.html import html_text

PAGE = """<!doctype html><html><head><title>T</title><style>p {}</style><meta charset="utf-8"></head><body>
<nav>menu</nav><h1>A&amp;B</h1><p>One   <b>bold</b>
line.<p>Two<br>three &eacute;<script>var x = "<p>no</p>";</script><ul><li>a<li>b</ul></body></html>"""


def test_page_gives_its_readable_text(tmp_path, read):
    text = read(write_file(tmp_path / "a.html", PAGE.encode()))[0][0]
    assert text.split() == ["A&B", "One", "bold", "line.", "Two", "three", "é", "a", "b"]
    assert "One bold line.\n\nTwo\nthree é\n\na\nb" in text


def test_declared_encoding_is_used(tmp_path, read):
    latin = PAGE.replace("utf-8", "iso-8859-1").replace("&eacute;", "é").encode("latin-1")
    assert read(write_file(tmp_path / "b.htm", latin))[0][0] == html_text(PAGE)
    unknown = PAGE.replace("utf-8", "klingon").encode()
    documents, corpus = read(write_file(tmp_path / "c.html", unknown))
    assert documents == [html_text(PAGE)] and corpus.skipped.total() == 1


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One<p>Two &amp; <b>three</b>", "One\n\nTwo & three\n"),
        ("<pre>a\n  b</pre>", "a\n  b\n"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "a b\nc\n"),
        ("<head><title>T<body>text", "text\n"),
        ("", ""),
    ],
)
def test_tags_become_spaces_and_line_ends(html, text):
    assert html_text(html) == text
