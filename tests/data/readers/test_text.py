"""Plain text: encodings, line ends, and files that are not text."""

import re

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
    error = refused(write_file(tmp_path / "many.txt", b"x" * position + b"\xe9" * (position + 9)), encoding="ascii")
    assert error.code == "text-not-in-encoding" and f"byte {position:,}" in str(error)


def test_unknown_encoding_is_refused():
    with pytest.raises(BadInputError, match="--encoding klingon") as error:
        ReadOptions(encoding="klingon")
    assert error.value.code == "encoding-unknown"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "file-not-text-format"),
        (bytes(range(256)) * 100, "file-not-text"),
        (b"%PDF-1.7 text", "file-not-text-format"),
        (b"PK\x03\x04word/document.xml", "file-not-text-format"),
        (b"", "file-empty"),
        (b" \r\n\t\n", "file-empty"),
        (b"\n" * 3_000_000, "file-empty"),
        (b"\xef\xbb\xbf", "file-empty"),
    ],
    ids=["png", "bytes", "pdf", "docx", "empty", "blank", "only newlines", "only a byte order mark"],
)
def test_other_files_are_refused_by_name_and_skipped_in_a_folder(tmp_path, read, refused, raw, code):
    error = refused(write_file(tmp_path / "odd.txt", raw))
    assert error.code == code and "odd.txt" in str(error)
    write_file(tmp_path / "text.txt", b"good")
    documents, corpus = read(str(tmp_path))
    assert (
        documents == ["good"] and corpus.skipped == {error.reason: 1} and corpus.examples == {error.reason: "odd.txt"}
    )


@pytest.mark.parametrize(
    ("raw", "text", "changed"),
    [
        ("He said “no”. ".encode() * 99 + b"caf\xe9 end", "He said “no”. " * 99 + "caf\ufffd end", 1),
        ("It’s ".encode() * 3 + "é".encode()[:1], "It’s " * 3 + "\ufffd", 1),
        (b"plain \xe2\x80", "plain \ufffd\ufffd", 2),
        (b"one\0two " * 2 + b"words " * 99, "onetwo " * 2 + "words " * 99, 2),
        ("a\ufeffb\n\ufeffc".encode("utf-8-sig"), "ab\nc", 2),
        ("\ufeffone\n".encode("utf-8-sig"), "one\n", 1),
        ("Plain words, and more.\n".encode("utf-16-le"), "Plain words, and more.\n", 1),
        ("Plain words, and more.\n".encode("utf-16-be"), "Plain words, and more.\n", 1),
        (b"smile \xed\xa0\xbd\xed\xb8\x80 end", "smile 😀 end", 1),
        ("half \ud800 pair".encode("utf-16", "surrogatepass"), "half \ufffd pair", 1),
        (b"half \xed\xa0\xbd pair, " * 9, "half \ufffd pair, " * 9, 9),
        ('<?xml version="1.0" encoding="windows-1251"?><p>Привет'.encode("cp1251"), None, 0),
    ],
    ids=[
        "one bad byte",
        "cut",
        "cut in ASCII",
        "zeros",
        "marks",
        "two marks",
        "utf-16-le",
        "utf-16-be",
        "cesu",
        "half",
        "half in utf-8",
        "xml",
    ],
)
def test_small_damage_is_mended_and_told(tmp_path, read, raw, text, changed):
    documents, corpus = read(write_file(tmp_path / "a.txt", raw))
    assert documents == [text or raw.decode("cp1251")] and corpus.changed.total() == changed
    assert all(place.startswith("a.txt") for place in corpus.examples.values())


def test_encoding_given_for_a_folder_is_for_the_files_that_need_it(tmp_path, read):
    for name, raw in {
        "a.txt": "é".encode(),
        "b.txt": "é".encode("latin-1"),
        "c.txt": "é".encode("utf-16"),
        "d.pdf": b"%PDF-1.7 text",
        "e.bin": bytes(range(256)) * 100,
        "f.txt": b"x" * PIECE_SIZE + "é".encode(),
        "g.txt": b"x" * PIECE_SIZE + "é".encode("latin-1"),
    }.items():
        write_file(tmp_path / name, raw)
    documents, corpus = read(str(tmp_path), encoding="latin-1")
    assert documents == ["é", "é", "é", "x" * PIECE_SIZE + "é", "x" * PIECE_SIZE + "é"]
    assert corpus.skipped == {"is a PDF": 1, "is not a text file": 1}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Le café était fermé, dit-il, et la fenêtre ouverte. " * 9, "cp1252"),
        ("Съешь же ещё этих мягких французских булок, да выпей чаю. " * 9, "cp1251"),
        ("色は匂へど散りぬるを我が世誰ぞ常ならむ有為の奥山今日越えて。" * 9, "shift_jis"),
        ("吾輩は猫である。名前はまだ無い。" * 90, "cp932"),
        ("吾輩は猫である。名前はまだ無い。" * 90, "euc_jp"),
    ],
)
def test_encoding_that_is_named_as_a_remedy_reads_the_text(tmp_path, read, refused, text, encoding):
    path = write_file(tmp_path / "a.txt", text.encode(encoding))
    named = re.search(r"--encoding (\S+),", str(refused(path)))[1]
    assert read(path, encoding=named)[0] == [text]


def test_text_that_no_encoding_fits_can_be_read_as_the_remedy_says(tmp_path, read, refused):
    path = write_file(tmp_path / "a.txt", b"x" * 5000 + bytes([0x81, 0x8D, 0x8F, 0x90]) + b"x")
    assert "--encoding utf-8" in str(refused(path))
    assert read(path, encoding="utf-8")[0] == ["x" * 5000 + "\ufffd" * 4 + "x"]
