"""Electronic books: chapters in reading order."""

import pytest

from tests.data.readers.samples import epub_bytes, zip_bytes
from tests.data.support import write_file


def test_chapters_come_in_reading_order(tmp_path, read):
    book = write_file(tmp_path / "a.epub", epub_bytes(["First é", "Second"]))
    assert read(book)[0] == ["First é\n\nSecond\n"]


def test_copy_protected_book_is_refused(tmp_path, refused):
    encryption = '<e><EncryptedData/><CipherReference URI="O/c0.xhtml"/></e>'
    book = epub_bytes(["First"], {"META-INF/encryption.xml": encryption})
    assert refused(write_file(tmp_path / "a.epub", book)).code == "epub-copy-protected"


def test_book_with_encrypted_fonts_is_read(tmp_path, read):
    encryption = '<e><EncryptedData/><CipherReference URI="O/font.otf"/></e>'
    book = epub_bytes(["First"], {"META-INF/encryption.xml": encryption})
    assert read(write_file(tmp_path / "a.epub", book))[0] == ["First\n"]


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense",
        epub_bytes(["First"], {"META-INF/container.xml": "<c/>"}),
        epub_bytes(["First"], {"O/c.opf": ""}),
    ],
    ids=["not a zip", "no package file", "an empty package file"],
)
def test_malformed_book_is_refused(tmp_path, refused, raw):
    error = refused(write_file(tmp_path / "a.epub", raw))
    assert error.code == "epub-malformed" and "a.epub" in str(error)


def test_entities_of_a_package_are_not_expanded(tmp_path, read):
    """A package that defines an entity by others, which would expand to gigabytes, and one that opens a file."""
    entities = '<!ENTITY a "x"><!ENTITY b "&a;&a;"><!ENTITY f SYSTEM "file:///etc/passwd">'
    opf = (
        f"<!DOCTYPE p [{entities}]><package><metadata><t>&b;&f;&nbsp;</t></metadata>"
        '<manifest><item id="i0" href="c0.xhtml"/></manifest><spine><itemref idref="i0"/></spine></package>'
    )
    assert read(write_file(tmp_path / "a.epub", epub_bytes(["First"], {"O/c.opf": opf})))[0] == ["First\n"]


@pytest.mark.parametrize(
    ("opf_path", "href", "chapter"),
    [
        ("OEBPS/package/c.opf", "../text/one.xhtml", "OEBPS/text/one.xhtml"),
        ("OEBPS/c.opf", "Text/One.xhtml", "OEBPS/text/one.xhtml"),
        ("OEBPS/c.opf", "/OEBPS/one.xhtml", "OEBPS/one.xhtml"),
        ("/OEBPS/c.opf", "one%20b.xhtml#part2", "OEBPS/one b.xhtml"),
        ("c.opf", "../../one.xhtml", "one.xhtml"),
        ("OEBPS/c.opf", "./a/../one.xhtml", "OEBPS/one.xhtml"),
        ("OEBPS\\c.opf", "one.xhtml", "OEBPS\\one.xhtml"),
    ],
)
def test_chapters_are_found_as_a_browser_finds_pages(tmp_path, read, opf_path, href, chapter):
    opf = f'<package><manifest><item id="a" href="{href}"/></manifest><spine><itemref idref="a"/></spine></package>'
    files = {
        "META-INF/container.xml": f'<c><rootfiles><rootfile full-path="{opf_path}"/></rootfiles></c>',
        opf_path.lstrip("/"): opf,
        chapter: "<html><head><title/></head><body><p>Text.</p></body></html>",
    }
    documents, corpus = read(write_file(tmp_path / "a.epub", zip_bytes(files)))
    assert documents == ["Text.\n"] and not corpus.skipped


def test_lost_chapters_are_counted_and_a_book_without_a_list_is_read(tmp_path, read):
    spine = '<spine><itemref idref="i0"/><itemref idref="gone"/><itemref idref="i7"/></spine>'
    items = '<manifest><item id="i0" href="c0.xhtml"/><item id="i7" href="c7.xhtml"/></manifest>'
    book = epub_bytes(["First", "Second"], {"O/c.opf": f"<package>{items}{spine}</package>"})
    documents, corpus = read(write_file(tmp_path / "a.epub", book))
    assert documents == ["First\n"] and corpus.skipped == {"chapters that are not in the book's archive": 2}
    assert "a.epub, gone" in corpus.examples.values()
    book = epub_bytes(["First", "Second"], {"O/c.opf": "<package/>"})
    documents, corpus = read(write_file(tmp_path / "b.epub", book))
    assert documents == ["First\n\nSecond\n"] and corpus.changed.total() == 1


def test_chapter_states_its_encoding(tmp_path, read):
    page = '<?xml version="1.0" encoding="windows-1251"?><html><body><p>Привет</p></body></html>'
    book = epub_bytes(["x"], {"O/c0.xhtml": page.encode("cp1251")})
    assert read(write_file(tmp_path / "a.epub", book))[0] == ["Привет\n"]
