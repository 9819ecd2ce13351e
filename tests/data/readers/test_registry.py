"""The contract of every reader: its format is read, compressed or not, and damage never crashes it."""

import bz2
import gzip
import lzma
import random

import pyarrow
import pytest

from tests.data.readers.samples import SAMPLE_OF_SUFFIX
from tests.data.support import write_file
from tiny_gpt.data.readers.compression import DECOMPRESSORS
from tiny_gpt.data.readers.registry import READERS, supported_formats
from tiny_gpt.errors import BadInputError


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESSORS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def test_every_suffix_has_a_sample():
    assert SAMPLE_OF_SUFFIX.keys() == READERS.keys() | {".txt"}
    assert COMPRESSORS.keys() == DECOMPRESSORS.keys()


def test_supported_formats_names_every_suffix():
    assert set(READERS) | set(DECOMPRESSORS) <= set(" ".join(supported_formats()).split())


@pytest.mark.parametrize("suffix", SAMPLE_OF_SUFFIX)
@pytest.mark.parametrize("compression", ["", *DECOMPRESSORS])
def test_format_is_read(tmp_path, read, refused, suffix, compression):
    raw = SAMPLE_OF_SUFFIX[suffix]
    if compression == ".zst" and suffix in (".epub", ".zip"):  # an archive is read by seeking, which zstd cannot
        assert refused(write_file(tmp_path / f"a{suffix}.zst", zstd(raw))).code in ("file-damaged", "epub-malformed")
        return
    content = COMPRESSORS[compression](raw) if compression else raw
    for name in (f"a{suffix}{compression}", f"A{suffix}{compression}".upper()):
        documents, corpus = read(write_file(tmp_path / name, content))
        assert "\n\n".join(documents).strip() == "one\n\ntwo é" and not corpus.skipped


@pytest.mark.parametrize("suffix", SAMPLE_OF_SUFFIX)
@pytest.mark.parametrize("compression", ["", *DECOMPRESSORS])
def test_damage_is_refused_or_read(tmp_path, read, suffix, compression):
    raw = SAMPLE_OF_SUFFIX[suffix]
    whole = COMPRESSORS[compression](raw) if compression else raw
    rng = random.Random(f"{suffix}{compression}")
    name = f"a{suffix}{compression}"
    for _ in range(60):
        damaged = bytearray(whole[: rng.randrange(len(whole) + 1)] if rng.random() < 0.3 else whole)
        for _ in range(rng.randint(0, 3)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read(write_file(tmp_path / name, bytes(damaged)))
        except BadInputError as error:
            assert name in str(error) and error.code
