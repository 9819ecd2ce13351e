"""What a file may unpack to: refused beforehand where it states its size, else while it is read."""

import bz2
import gzip
import io
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.readers.samples import epub_bytes, zip_bytes
from tests.data.readers.test_registry import zstd
from tests.data.support import write_file
from tiny_gpt.data.readers import limits
from tiny_gpt.data.readers.limits import allowed_bytes, parse_size
from tiny_gpt.errors import BadInputError

LETTERS = b"a" * 300_000


def parquet_of(texts, **options):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), sink, compression="zstd", **options)
    return sink.getvalue()


BOMBS = {
    "a.txt.gz": gzip.compress(LETTERS),
    "a.txt.bz2": bz2.compress(LETTERS),
    "a.txt.xz": lzma.compress(LETTERS),
    "a.txt.zst": zstd(LETTERS),
    "a.html.gz": gzip.compress(b"<p>" + LETTERS),
    "two.txt.gz": gzip.compress(LETTERS) + gzip.compress(b"a"),
    "a.zip": zip_bytes({"a.txt": LETTERS}),
    "many.zip": zip_bytes({f"{i}.txt": LETTERS[:30_000] for i in range(10)}),
    "in.zip": zip_bytes({"in.zip": zip_bytes({"a.txt": LETTERS})}),
    "a.tar.gz": gzip.compress(LETTERS),
    "a.epub": epub_bytes([LETTERS.decode()]),
    "plain.parquet": parquet_of([LETTERS.decode()] * 2, use_dictionary=False),
    "repeated.parquet": parquet_of(pyarrow.array([LETTERS[:10_000].decode()] * 40).dictionary_encode()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_file_that_unpacks_to_too_much_is_refused_named_and_skipped_in_a_folder(
    tmp_path, read, refused, monkeypatch, name
):
    monkeypatch.setattr(limits, "ALWAYS_ALLOWED", 100_000)
    path = write_file(tmp_path / name, BOMBS[name])
    error = refused(path)
    assert error.code == "unpacks-to-too-much" and name in str(error)
    write_file(tmp_path / "good.txt", b"good")
    documents, corpus = read(str(tmp_path))
    assert documents == ["good"] and corpus.skipped == {"unpacks to more than is allowed": 1}
    if name != "a.tar.gz":  # no archive
        assert sum(map(len, read(path, max_unpacked=parse_size("9MB"))[0])) >= 300_000  # as the remedy says


def test_limit_follows_the_file_and_what_the_user_says():
    assert allowed_bytes(10) == 64 << 20 and allowed_bytes(10**7) == 10**9 and allowed_bytes(10**12) == 5 * 10**10
    assert allowed_bytes(10, parse_size("80GB")) == 8 * 10**10 == parse_size(" 80 gb")
    assert (parse_size("500"), parse_size("1.5 MB"), parse_size("2k")) == (500, 1_500_000, 2000)
    for text in ("much", "-1", "0", "1 XB", ""):
        with pytest.raises(BadInputError):
            parse_size(text)
