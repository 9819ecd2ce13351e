"""A text in one file: what is held out, and that chunks together are the text."""

import itertools
import random

import numpy as np
import pytest

from tests.data.support import text_of, write_documents
from tiny_gpt.data import text_file
from tiny_gpt.data.text_file import LONG_DOCUMENT, SEPARATOR, TextWriter


def documents_of(split):
    return text_of(split).split(SEPARATOR.decode())


@pytest.mark.parametrize("lengths", [[10], [1000], [30, 90, 100, 110, 250], [57] * (LONG_DOCUMENT - 1)])
def test_long_documents_hold_out_their_last_tenth(tmp_path, lengths):
    documents = [chr(ord("A") + i % 50) * length for i, length in enumerate(lengths)]
    train, val = write_documents(tmp_path / "text", documents).split(0.1)
    assert text_of(train) == "\n\n".join(document[: len(document) - len(document) // 10] for document in documents)
    assert text_of(val) == "\n\n".join(document[len(document) - len(document) // 10 :] for document in documents)


@pytest.mark.parametrize(("n_documents", "fraction", "every"), [(100, 0.1, 10), (1007, 0.1, 10), (1000, 0.05, 20)])
def test_short_documents_are_held_out_whole(tmp_path, n_documents, fraction, every):
    documents = [f"document {i:04}" for i in range(n_documents)]
    train, val = write_documents(tmp_path / "text", documents).split(fraction)
    assert documents_of(val) == documents[every - 1 :: every]
    assert sorted(documents_of(train) + documents_of(val)) == documents


def test_long_document_among_short_ones_gives_its_end(tmp_path):
    documents = [f"short {i:03}" for i in range(100)] + ["x" * 9000 + "y" * 1000]
    train, val = write_documents(tmp_path / "text", documents).split(0.1)
    assert documents_of(val) == [*documents[9:100:10], "y" * 1000]
    assert text_of(train).endswith("x" * 9000) and "y" not in text_of(train).replace("ty", "")


def test_held_out_bytes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "MAX_VALIDATION_BYTES", 500)
    for documents in (["x" * 100_000], ["y" * 10] * 10_000):
        _, val = write_documents(tmp_path / "text", documents).split(0.1)
        assert 400 <= val.n_bytes <= 700


def test_split_never_cuts_a_character(tmp_path):
    for text in ("é中😀" * 1000, "😀" * 999, "aé" * 77):
        train, val = write_documents(tmp_path / "text", [text]).split(0.1)
        assert text_of(train) + text_of(val) == text


@pytest.mark.parametrize("chunk_bytes", [8, 33, 100, 10_000])
def test_chunks_are_the_text_and_cut_no_word(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", chunk_bytes)
    rng = random.Random(chunk_bytes)
    for _ in range(30):
        n_documents = rng.choice([1, 3, 150])
        documents = [
            "".join(rng.choices(["word", " ", "\n", "é", "中", "😀", "a"], k=rng.randint(1, 60))).strip() or "x"
            for _ in range(n_documents)
        ]
        text = write_documents(tmp_path / "text", documents)
        assert text.n_characters == sum(map(len, documents))
        assert text_of(text.whole()) == "\n\n".join(documents)
        assert text.whole().n_bytes == len(text_of(text.whole()).encode())
        train, val = text.split(0.2)
        for split in (train, val):
            chunks = [chunk.read() for chunk in split.chunks()]
            assert sum(map(len, chunks)) == split.n_bytes
            assert all(0 < len(chunk) <= chunk_bytes + 8 for chunk in chunks)
            for before, after in itertools.pairwise(chunks):
                is_inside = before[-1:].isspace() or not after[:1].isspace()
                words_fit = max(map(len, (before + after).split())) <= chunk_bytes // 4
                assert not (is_inside and words_fit and before[-1:].isalnum() and after[:1].isalnum())


def test_long_word_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 100)
    text = "😀é" * 1000
    chunks = [chunk.read().decode() for chunk in write_documents(tmp_path / "text", [text]).whole().chunks()]
    assert "".join(chunks) == text and max(len(chunk.encode()) for chunk in chunks) <= 101


def test_blank_documents_are_dropped(tmp_path):
    text = write_documents(tmp_path / "text", ["", "one", " \n", "two", "\n\n"])
    assert documents_of(text.whole()) == ["one", "two"] and text.n_characters == 6


def test_truncate_drops_what_came_after(tmp_path):
    writer = TextWriter(tmp_path / "text")
    for word in ("one", "two"):
        writer.begin_document()
        writer.write(word)
        writer.end_document()
    position = writer.position()
    writer.begin_document()
    writer.write("half of a docum")
    writer.truncate(position)
    writer.begin_document()
    writer.write("three")
    writer.end_document()
    text = writer.close()
    assert text_of(text.whole()) == "one\n\ntwo\n\nthree" and text.n_characters == 11


def test_sample_is_drawn_evenly_from_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text_file, "CHUNK_BYTES", 1000)
    text = "\n".join(f"{i:09}" for i in range(10_000))
    split = write_documents(tmp_path / "text", [text]).whole()
    assert "".join(split.sample(1_000_000)) == text
    sample = list(split.sample(10_000))
    assert 9_000 < sum(map(len, sample)) <= 10_000
    numbers = [int(line) for piece in sample for line in piece.split("\n") if len(line) == 9]
    assert np.histogram(numbers, bins=10, range=(0, 10_000))[0].min() > 40


def test_a_large_fraction_of_short_documents_leaves_some_to_train_on(tmp_path):
    documents = [f"document {number}" for number in range(5000)]
    train, val = write_documents(tmp_path / "text", documents).split(0.8)
    assert [len(documents_of(split)) for split in (train, val)] == [1000, 4000]
