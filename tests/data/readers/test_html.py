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
    assert documents == [html_text(PAGE)] and corpus.changed["unknown encodings declared, read as UTF-8"] == 1


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One<p>Two &amp; <b>three</b>", "One\n\nTwo & three\n"),
        ("<pre>a\n  b</pre>", "a\n  b\n"),
        ("<table><tr><td>a<td>b<tr><td>c</table>", "a b\nc\n"),
        ("<html><head><meta charset=utf-8><title>T</title><p>First<p>Second", "First\n\nSecond\n"),
        ("<nav><ul><li>Home</ul><p>Body of a menu never closed.</p>", "Body of a menu never closed.\n"),
        ("<nav><a>Only</a> <a>a menu</a></nav>", "Only\na menu\n"),
        ("<p>Let <math><mi>x</mi><annotation>x^2</annotation></math> be.", "Let x be.\n"),
        ("<html><head><title/><script src='a'/></head><body><a id='b'/><p>one</p><i/>two", "one\n\ntwo\n"),
        ("text without tags", "text without tags\n"),
        ("<p>&eacute;&nbsp;&#8212; &bogus; &amp", "é\xa0— &bogus; &\n"),
        ("<!-- never closed <p>text", ""),
        ("", ""),
    ],
)
def test_tags_become_spaces_and_line_ends(html, text):
    assert html_text(html) == text
