"""What a text copies from another."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.support import SAMPLES
from tiny_gpt.data.copied_spans import MIN_SPAN_BYTES, WINDOW_BYTES, CopyIndex

LETTERS = "abcdefghijklmnopqrstuvwxyz \n"


def random_text(seed, n):
    return "".join(random.Random(seed).choices(LETTERS, k=n)).encode()


TEXT = random_text(0, 20_000)
INDEX = CopyIndex(TEXT)


@given(st.integers(0, 19_000), st.integers(MIN_SPAN_BYTES, 900), st.integers(0, 99))
def test_a_copied_passage_is_found_wherever_it_lies(position, n_bytes, n_before):
    query = random_text(1, n_before) + TEXT[position : position + n_bytes] + random_text(2, 50)
    (span,) = INDEX.find(query)
    assert query[span.start : span.end] == TEXT[span.position : span.position + span.n_bytes]
    assert span.start <= n_before and span.end >= n_before + n_bytes


def test_the_longest_passages_win_and_none_overlap():
    query = TEXT[100:180] + TEXT[5000:5400] + TEXT[90:170]
    spans = INDEX.find(query)
    assert [round(span.n_bytes, -1) for span in spans] == [80, 400, 80]
    assert all(before.end <= after.start for before, after in pairwise(spans))
    assert INDEX.copied_fraction(query) == pytest.approx(1, abs=0.01)


def test_short_common_phrases_do_not_count():
    query = random_text(3, 100) + TEXT[: MIN_SPAN_BYTES - 8] + random_text(4, 100)
    assert INDEX.find(query) == [] and INDEX.copied_fraction(query) == 0
    assert INDEX.find(b"") == [] and CopyIndex(b"").find(TEXT) == [] and INDEX.find(TEXT[:WINDOW_BYTES]) == []


def test_spans_contain_whole_characters():
    text = "".join(SAMPLES.values())
    index = CopyIndex(text.encode())
    for sample in ("猫坐在垫子上。\nजलस", "й Кошка сидела на коврике.\n猫", "🏳️‍🌈👩‍👩‍👧 🏳️‍🌈 n\u0303\n"):
        for span in index.find(sample.encode(), min_bytes=12):
            assert sample.encode()[span.start : span.end].decode() in text


def test_text_of_spaces_takes_no_time():
    spaces = CopyIndex(b" " * 200_000)
    assert sum(span.n_bytes for span in spaces.find(b" " * 5000)) == 5000


def test_lines_are_counted_from_one():
    index = CopyIndex(b"one\ntwo\nthree, which is long enough to be found by itself")
    assert [index.line_of(position) for position in (0, 3, 4, 8)] == [1, 1, 2, 3]
