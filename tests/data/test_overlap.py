"""Passages that occur twice."""

import pytest

from tests.data.support import write_documents
from tiny_gpt.data.overlap import MIN_PASSAGE_CHARACTERS, passages, repeated_fraction, val_overlap

SENTENCES = [f"This is the sentence with the number {i}, and it is long enough to count." for i in range(100)]


def test_validation_passages_in_the_training_text_are_found(tmp_path):
    train = write_documents(tmp_path / "train", ["\n".join(SENTENCES[:60]), "short\n" * 10]).whole()
    for known, fraction in (([], 0), (SENTENCES[:10], 0.5), (SENTENCES[:10] * 3, 0.5)):
        val = write_documents(tmp_path / "val", ["\n".join(known + SENTENCES[90:]), "short"]).whole()
        assert val_overlap(train, val) == pytest.approx(fraction, abs=0.02)


def test_sentences_of_long_lines_are_passages(tmp_path):
    train = write_documents(tmp_path / "train", [" ".join(SENTENCES[:60])]).whole()
    val = write_documents(tmp_path / "val", [" ".join(SENTENCES[40:80])]).whole()
    assert val_overlap(train, val) == pytest.approx(0.5, abs=0.03)


def test_repeated_passages_are_counted():
    assert repeated_fraction(["\n".join(SENTENCES)], 10_000) == 0
    assert repeated_fraction(["\n".join(SENTENCES)] * 2, 10_000) == 0.5
    many = ["\n".join(f"{sentence} {i}" for sentence in SENTENCES) for i in range(50)] * 2
    assert repeated_fraction(many, 10**9, max_passages=1_000_000) == pytest.approx(0.5, abs=0.05)
    assert repeated_fraction(["short\n"] * 99, 600) is None
    assert repeated_fraction(["\u2028".join(SENTENCES)] * 2, 10_000) == 0.5, "lines may end as word processors end them"
    assert list(passages("x" * (MIN_PASSAGE_CHARACTERS - 1))) == []
