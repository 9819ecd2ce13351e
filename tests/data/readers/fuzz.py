"""Fuzzed files for all readers: python -m tests.data.readers.fuzz 20000

Each input is a valid file of a format, damaged, spliced with pieces that have hurt readers, or both. Whatever comes out
is text or an UnreadableError; time and memory per file are bounded. `make faults` runs the long form.
"""

import io
import multiprocessing
import resource
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.data.readers.samples import SAMPLE_OF_SUFFIX
from tests.data.readers.test_registry import COMPRESSORS
from tiny_gpt.data.readers.base import LONE_SURROGATES, ReadContext, ReadOptions, UnreadableError
from tiny_gpt.data.readers.compression import DAMAGE_ERRORS
from tiny_gpt.data.readers.limits import UnpackBudget, UnpackLimitError
from tiny_gpt.data.readers.registry import read_documents

MAX_SECONDS, MAX_BYTES, BATCH = 20.0, 1 << 30, 1000
# What a reader may meet anywhere, and what took quadratic time somewhere.
PIECES = [
    *(
        b"<a ",
        b'<p a="',
        b"<!--",
        b"&#",
        b"<div>",
        b"</p>",
        b"<nav>",
        b"<title>",
        b"<script>",
        b"<![CDATA[",
        b"<b></i>",
        b"/>",
    ),
    *(b'"', b'\\"', b",", b";", b"\t", b"|", b"sep=,\n", b"\r", b"\r\n", b"\n\n"),
    *(b"[", b"{", b'{"text":', b'"\\ud800"', b"NaN", b"1" * 5000, b"null", b"]", b"}"),
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xe9",
        b"\x1b$B",
        b" ",
        b"\xc3",
        b"PK\x03\x04",
    ),
    *(b"charset=utf-7", b'<?xml version="1.0" encoding="utf-16"?>', b"<meta charset=iso-2022-jp>", b"<!ENTITY a 'b'>"),
]
OPTIONS = [
    ReadOptions(),
    ReadOptions(text_field="1"),
    ReadOptions(text_field="a.b,text"),
    ReadOptions(encoding="cp1252"),
    ReadOptions(encoding="utf-16"),
    ReadOptions(encoding="shift_jis"),
]


@st.composite
def files(draw):
    """(name, content, options) of a file that may be anything."""
    suffix = draw(st.sampled_from(sorted(SAMPLE_OF_SUFFIX)))
    content = draw(st.sampled_from([SAMPLE_OF_SUFFIX[suffix], b"", draw(st.binary(max_size=200))]))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 20)))
        inserted = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)))
        content = content[:start] + inserted * draw(st.sampled_from([0, 1, 2, 3000])) + content[end:]
    compression = draw(st.sampled_from(["", "", *COMPRESSORS]))
    if compression:
        content = COMPRESSORS[compression](content)
    if draw(st.booleans()) and content and compression:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    return f"a{suffix}{compression}", content, draw(st.sampled_from(OPTIONS))


def read_one(name, content, options):
    """Read a file as far as it goes. Returns "read", or the class of the expected error; raises any other."""
    budget = UnpackBudget()
    context = ReadContext(name, options, budget=budget)
    started = time.process_time()
    outcome = "read"
    try:
        for document in read_documents(io.BytesIO(content), context):
            for piece in document:
                assert not LONE_SURROGATES.search(piece) and "\0" not in piece and "\r" not in piece
                assert "\ufeff" not in piece
    except (UnreadableError, UnpackLimitError, *DAMAGE_ERRORS, OSError) as error:
        outcome = type(error).__name__
    assert time.process_time() - started < MAX_SECONDS, f"{name}: {content[:100]!r} took too long"
    return outcome


def fuzz(n_examples, number=0):
    """Read `n_examples` files; returns how often each outcome came. Each `number` has other files."""
    outcomes = Counter()

    @seed(number)
    @settings(
        max_examples=n_examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(files())
    def each(file):
        outcomes[read_one(*file)] += 1

    each()
    return outcomes


def fuzz_in_new_process(n_examples, number):
    outcomes = fuzz(n_examples, number)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    assert peak < MAX_BYTES, f"{peak:,} bytes of memory"
    return outcomes


def main(n_examples):
    """`fuzz` in a new process for each BATCH of files: hypothesis keeps notes of all inputs, which need memory too."""
    outcomes = Counter()
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        batches = [(min(BATCH, n_examples - start), start) for start in range(0, n_examples, BATCH)]
        for found in pool.starmap(fuzz_in_new_process, batches, chunksize=1):
            outcomes += found
    print(f"{outcomes.total():,} files: {dict(outcomes)}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
