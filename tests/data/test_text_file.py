"""A text in one file: what is held out, and that cutting it into chunks loses, doubles and moves nothing."""

import itertools
import random

import numpy as np
import pytest

from tiny_gpt.data import text_file
from tiny_gpt.data.overlap import MIN_CHARACTERS, passages, repeated_fraction, val_overlap
from tiny_gpt.data.text_file import LONG_DOCUMENT, SEPARATOR, TextWriter


def written(path, documents):
    """The documents in a file, each written in several pieces."""
    writer = TextWriter(path)
    for document in documents:
        writer.begin_document()
        for start in range(0, len(document), 7):
            writer.write(document[start : start + 7])
        writer.end_document()
    return writer.close()


def text_of(part):
    return b"".join(chunk.read() for chunk in part.chunks()).decode()


def documents_of(part):
    return text_of(part).split(SEPARATOR.decode())


@pytest.mark.parametrize("lengths", [[10], [1000], [30, 90, 100, 110, 250], [57] * (LONG_DOCUMENT - 1)])
def test_long_documents_each_hold_out_their_last_tenth(tmp_path, lengths):
    documents = [chr(ord("A") + i % 50) * length for i, length in enumerate(lengths)]
    train, val = written(tmp_path / "text", documents).split(0.1)
    assert text_of(train) == "\n\n".join(document[: len(document) - len(document) // 10] for document in documents)
    assert text_of(val) == "\n\n".join(document[len(document) - len(document) // 10 :] for document in documents)


@pytest.mark.parametrize(("n_documents", "share", "every"), [(100, 0.1, 10), (1007, 0.1, 10), (1000, 0.05, 20)])
def test_short_documents_are_held_out_whole(tmp_path, n_documents, share, every):
    documents = [f"document {i:04}" for i in range(n_documents)]
    train, val = written(tmp_path / "text", documents).split(share)
    assert documents_of(val) == documents[every - 1 :: every]
    assert sorted(documents_of(train) + documents_of(val)) == documents


def test_a_long_document_among_short_ones_gives_its_end(tmp_path):
    documents = [f"short {i:03}" for i in range(100)] + ["x" * 9000 + "y" * 1000]
    train, val = written(tmp_path / "text", documents).split(0.1)
    assert documents_of(val) == [*documents[9:100:10], "y" * 1000]
    assert text_of(train).endswith("x" * 9000) and "y" not in text_of(train).replace("ty", "")


def test_no_more_than_a_bound_is_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_VALIDATION_BYTES", 500)
    for documents in (["x" * 100_000], ["y" * 10] * 10_000):
        _, val = written(tmp_path / "text", documents).split(0.1)
        assert 400 <= val.n_bytes <= 700


def test_a_character_is_never_cut(tmp_path):
    for text in ("é中😀" * 1000, "😀" * 999, "aé" * 77):
        train, val = written(tmp_path / "text", [text]).split(0.1)
        assert text_of(train) + text_of(val) == text


@pytest.mark.parametrize("chunk_bytes", [8, 33, 100, 10_000])
def test_chunks_together_are_the_text_and_cut_no_word(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
    rng = random.Random(chunk_bytes)
    for _ in range(30):
        n_documents = rng.choice([1, 3, 150])
        documents = [
            "".join(rng.choices(["word", " ", "\n", "é", "中", "😀", "a"], k=rng.randint(1, 60))).strip() or "x"
            for _ in range(n_documents)
        ]
        text = written(tmp_path / "text", documents)
        assert text.n_characters == sum(map(len, documents))
        assert text_of(text.whole()) == "\n\n".join(documents)
        assert text.whole().n_bytes == len(text_of(text.whole()).encode())
        train, val = text.split(0.2)
        for part in (train, val):
            chunks = [chunk.read() for chunk in part.chunks()]
            assert sum(map(len, chunks)) == part.n_bytes
            assert all(0 < len(chunk) <= chunk_bytes + 8 for chunk in chunks)
            for before, after in itertools.pairwise(chunks):
                glued = before[-1:].isspace() or not after[:1].isspace()
                words_fit = max(map(len, (before + after).split())) <= chunk_bytes // 4
                assert not (glued and words_fit and before[-1:].isalnum() and after[:1].isalnum())


def test_a_long_line_without_spaces_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 100)
    text = "😀é" * 1000
    chunks = [chunk.read().decode() for chunk in written(tmp_path / "text", [text]).whole().chunks()]
    assert "".join(chunks) == text and max(len(chunk.encode()) for chunk in chunks) <= 101


def test_documents_of_nothing_but_white_space_are_forgotten(tmp_path):
    text = written(tmp_path / "text", ["", "one", " \n", "two", "\n\n"])
    assert documents_of(text.whole()) == ["one", "two"] and text.n_characters == 6


def test_going_back_forgets_what_came_after(tmp_path):
    writer = TextWriter(tmp_path / "text")
    for word in ("one", "two"):
        writer.begin_document()
        writer.write(word)
        writer.end_document()
    mark = writer.position()
    writer.begin_document()
    writer.write("half of a docum")
    writer.truncate(mark)
    writer.begin_document()
    writer.write("three")
    writer.end_document()
    text = writer.close()
    assert text_of(text.whole()) == "one\n\ntwo\n\nthree" and text.n_characters == 11


def test_a_sample_is_drawn_evenly_from_all_of_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 1000)
    text = "\n".join(f"{i:09}" for i in range(10_000))
    part = written(tmp_path / "text", [text]).whole()
    assert "".join(part.sample(1_000_000)) == text
    sample = list(part.sample(10_000))
    assert 9_000 < sum(map(len, sample)) <= 10_000
    numbers = [int(line) for piece in sample for line in piece.split("\n") if len(line) == 9]
    assert np.histogram(numbers, bins=10, range=(0, 10_000))[0].min() > 40


SENTENCES = [f"This is the sentence with the number {i}, and it is long enough to count." for i in range(100)]


def test_text_on_both_sides_is_found(tmp_path):
    train = written(tmp_path / "train", ["\n".join(SENTENCES[:60]), "short\n" * 10]).whole()
    for known, share in (([], 0), (SENTENCES[:10], 0.5), (SENTENCES[:10] * 3, 0.5)):
        val = written(tmp_path / "val", ["\n".join(known + SENTENCES[90:]), "short"]).whole()
        assert val_overlap(train, val) == pytest.approx(share, abs=0.02)
    one_line = written(tmp_path / "line", [" ".join(SENTENCES[:60])]).whole()
    val = written(tmp_path / "val", [" ".join(SENTENCES[40:80])]).whole()
    assert val_overlap(one_line, val) == pytest.approx(0.5, abs=0.03)


def test_repeated_passages_are_counted():
    assert repeated_fraction(["\n".join(SENTENCES)], 10_000) == 0
    assert repeated_fraction(["\n".join(SENTENCES)] * 2, 10_000) == 0.5
    many = ["\n".join(f"{sentence} {i}" for sentence in SENTENCES) for i in range(50)] * 2
    assert repeated_fraction(many, 10**9, max_passages=1_000_000) == pytest.approx(0.5, abs=0.05)
    assert list(passages("x" * (MIN_CHARACTERS - 1))) == []
