"""Electronic books: chapters in reading order."""

import pytest

from tests.data.readers.samples import epub_bytes
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
        epub_bytes(["First"], {"O/c.opf": '<!DOCTYPE a [<!ENTITY b "c">]><package/>'}),
    ],
    ids=["not a zip", "no package file", "XML entities"],
)
def test_malformed_book_is_refused(tmp_path, refused, raw):
    error = refused(write_file(tmp_path / "a.epub", raw))
    assert error.code == "epub-malformed" and "a.epub" in str(error)
