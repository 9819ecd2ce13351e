"""Text output that is safe for any terminal."""

import io

import pytest

from tiny_gpt.ui.terminal import INDENT, make_safe, printable, row


def test_safe_stream_accepts_any_text():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    make_safe(stream)
    stream.write("né \ud800 😀")
    stream.flush()
    assert stream.buffer.getvalue() == b"n? ? ?"


def test_control_characters_are_replaced():
    assert printable("a\x1b[31m\x07\x9b\r\x00\ud800é中😀\n\tb") == "a�[31m�����é中😀\n\tb"


@pytest.mark.parametrize("width", [None, 0, 10, 22])
def test_row_without_room_is_one_line(width):
    assert row("text", "several words here", width) == "text       several words here"


def test_row_wraps_between_words_and_indents():
    assert row("text", "several words here", 26) == "text       several words\n           here"
    assert row("text", "https://example.org/a-long-path/b next", 26).splitlines() == [
        "text       https://example.org/a-long-path/b",
        " " * INDENT + "next",
    ]
    assert row("text", "", 80).strip() == "text"
