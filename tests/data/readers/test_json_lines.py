"""JSON lines: a document per line."""

import json

import pytest

from tests.data.support import write_file


def test_each_line_is_a_document(tmp_path, read):
    records = [{"text": "one\r\ntwo"}, {"text": ""}, {"text": None}, {"text": "half \ud800 a pair"}, {"text": "中 😀"}]
    raw = "\n\n".join(map(json.dumps, records)) + '\n"bare"'
    documents, corpus = read(write_file(tmp_path / "a.jsonl", raw.encode()))
    assert documents == ["one\ntwo", "half \ufffd a pair", "中 😀", "bare"]
    assert corpus.skipped == {"empty records": 2, "lone surrogates replaced by U+FFFD": 1}
    assert read(write_file(tmp_path / "b.jsonl", b'{"body": "x"}'), text_field="body")[0] == ["x"]


@pytest.mark.parametrize(
    ("raw", "code", "values"),
    [
        (b'{"text": "x"}\n{"body": 1, "title": 2}', "text-field-missing", ["line 2", "body, title", "--text-field"]),
        (b'{"text": "x"}\n{"text": ', "line-not-json", ["line 2"]),
        (b"[" * 100_000, "line-not-json", ["line 1"]),
        (b'{"text": 5}', "text-field-not-text", ["line 1", "'text'", "5", "--text-field"]),
        (b"1" * 5000, "line-not-json", ["line 1"]),
    ],
)
def test_invalid_line_is_located(tmp_path, refused, raw, code, values):
    error = refused(write_file(tmp_path / "a.jsonl", raw))
    assert error.code == code and all(value in str(error) for value in ["a.jsonl", *values]), error
