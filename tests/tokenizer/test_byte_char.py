"""The byte and char tokenizers."""

import gc
import weakref

from tests.tokenizer.support import FREQUENT, RARE, TRAINING_TEXTS, streamed
from tiny_gpt.tokenizer.base import decode
from tiny_gpt.tokenizer.byte_char import N_BYTES, ByteTokenizer, CharTokenizer, to_utf8


def test_invalid_bytes_decode_like_pythons_codec():
    byte = ByteTokenizer()
    for encoded in (b"\xff", b"a\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xc3(", b"\x80\x80", b"\xf5\x80", b"\xc0\x80"):
        assert decode(byte, encoded) == encoded.decode("utf-8", "replace")


def test_invalid_bytes_keep_nothing_alive():
    """What a function that decodes them has used is freed when it returns, without Python's collector."""

    def used() -> weakref.ref[ByteTokenizer]:
        byte = ByteTokenizer()
        decode(byte, b"a\xff")
        return weakref.ref(byte)

    gc.disable()
    try:
        assert used()() is None
    finally:
        gc.enable()


def test_stream_writes_a_character_once_it_is_complete():
    byte = ByteTokenizer()
    assert streamed(byte, list("aé😀".encode())) == ["a", "é", "😀"]
    assert streamed(byte, list("é".encode()[:1])) == ["\N{REPLACEMENT CHARACTER}"]


def test_char_has_ids_for_frequent_characters_only():
    char = CharTokenizer.train(TRAINING_TEXTS, 0)
    assert char.vocab_size == N_BYTES + len(FREQUENT)
    assert sorted(int(char.encode(c)[0]) for c in FREQUENT) == list(range(N_BYTES, char.vocab_size))
    assert all(len(char.encode(c)) == 1 for c in FREQUENT)
    assert all(char.encode(c).tolist() == list(c.encode()) for c in RARE)
    assert char.encode("A~\n").tolist() == list(b"A~\n")
    assert char.encode("né" + RARE[0]).tolist() == [ord("n"), *char.encode("é"), *RARE[0].encode()]


def test_char_has_no_ids_for_lone_surrogates():
    assert CharTokenizer.train(["\ud800\udfff" * 100], 0).vocab_size == N_BYTES


def test_byte_ids_are_utf8():
    assert ByteTokenizer().encode("é中\ud800").tolist() == list(to_utf8("é中\ud800"))
