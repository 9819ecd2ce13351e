"""Fuzzed files: readers give text or a clear error, in bounded time and memory. The long form: `make faults`."""

from tests.data.readers.fuzz import fuzz


def test_fuzzed_files_are_read_or_refused():
    assert fuzz(300).total() >= 300
