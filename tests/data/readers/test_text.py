"""Plain text: encodings, line ends, and files that are not text."""

import pytest

from tests.data.support import SAMPLES, write_file
from tiny_gpt.data.readers.base import PIECE_SIZE, ReadOptions
from tiny_gpt.errors import BadInputError


@pytest.mark.parametrize("script", SAMPLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_mark_chooses_the_encoding(tmp_path, read, script, encoding):
    text = SAMPLES[script] * 20
    assert read(write_file(tmp_path / "a.txt", text.encode(encoding)))[0] == [text]


@pytest.mark.parametrize(("raw", "text"), [(b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"), (b"a", "a")])
def test_line_ends_become_lf(tmp_path, read, raw, text):
    assert read(write_file(tmp_path / "a.txt", raw))[0] == [text]


def test_characters_across_two_pieces_are_whole(tmp_path, read):
    for text, encoded in (("é", "é".encode()), ("\n", b"\r\n"), ("😀", "😀".encode())):
        for n_before in range(len(encoded) + 1):
            raw = b"x" * (PIECE_SIZE - n_before) + encoded + b"y"
            expected = "x" * (PIECE_SIZE - n_before) + text + "y"
            assert read(write_file(tmp_path / "a.txt", raw))[0] == [expected]


@pytest.mark.parametrize("position", [3, 1234, PIECE_SIZE - 1, PIECE_SIZE, 1_500_000])
def test_first_invalid_byte_is_located(tmp_path, read, refused, position):
    path = write_file(tmp_path / "latin.txt", b"x" * position + "é".encode("latin-1") + b"x" * 10)
    error = refused(path)
    assert error.code == "text-not-utf8" and "latin.txt" in str(error)
    assert f"byte {position:,} is 0xe9" in str(error) and "--encoding cp1252" in str(error)
    assert read(path, encoding="cp1252")[0] == ["x" * position + "é" + "x" * 10]
    error = refused(path, encoding="ascii")
    assert error.code == "text-not-in-encoding" and f"byte {position:,}" in str(error)


def test_unknown_encoding_is_refused():
    with pytest.raises(BadInputError, match="--encoding klingon") as error:
        ReadOptions(encoding="klingon")
    assert error.value.code == "encoding-unknown"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "file-has-zero-bytes"),
        (b"%PDF-1.7 text", "file-not-text-format"),
        (b"PK\x03\x04word/document.xml", "file-not-text-format"),
        (b"", "file-empty"),
        (b" \r\n\t\n", "file-empty"),
        (b"\n" * 3_000_000, "file-empty"),
        (b"\xef\xbb\xbf", "file-empty"),
    ],
    ids=["png", "pdf", "docx", "empty", "blank", "only newlines", "only a byte order mark"],
)
def test_other_files_are_refused_by_name_and_skipped_in_a_folder(tmp_path, read, refused, raw, code):
    error = refused(write_file(tmp_path / "odd.txt", raw))
    assert error.code == code and "odd.txt" in str(error)
    write_file(tmp_path / "text.txt", b"good")
    documents, corpus = read(str(tmp_path))
    assert (
        documents == ["good"] and corpus.skipped == {error.reason: 1} and corpus.examples == {error.reason: "odd.txt"}
    )
