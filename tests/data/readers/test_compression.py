"""Compressed files: complete ones are read, damaged ones refused."""

import pytest

from tests.data.readers.test_registry import COMPRESSORS, zstd
from tests.data.support import SAMPLES, write_file


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_incomplete_file_is_refused(tmp_path, read, refused, suffix):
    text = "".join(SAMPLES.values()) * 300
    raw = COMPRESSORS[suffix](text.encode())
    assert read(write_file(tmp_path / f"a.txt{suffix}", raw))[0] == [text]
    for damaged in (raw[: len(raw) // 2], b"nonsense" * 10):
        error = refused(write_file(tmp_path / f"odd{suffix}", damaged))
        assert error.code in ("file-damaged", "file-unreadable") and f"odd{suffix}" in str(error)


def test_zstd_of_several_frames_is_read_whole(tmp_path, read):
    text = "".join(SAMPLES.values()) * 300
    raw = zstd(text.encode()) + zstd(b"more")
    assert read(write_file(tmp_path / "a.txt.zst", raw))[0] == [text + "more"]
