"""JSON: a document per record."""

import json

import pytest

from tests.data.support import write_file
from tiny_gpt.data.readers import text


def test_each_line_is_a_document(tmp_path, read):
    records = [{"text": "one\r\ntwo"}, {"text": ""}, {"text": None}, {"text": "half \ud800 a pair"}, {"text": "中 😀"}]
    raw = "\n\n".join(map(json.dumps, records)) + '\n"bare"'
    documents, corpus = read(write_file(tmp_path / "a.jsonl", raw.encode()))
    assert documents == ["one\ntwo", "half \ufffd a pair", "中 😀", "bare"]
    assert corpus.skipped == {"empty records": 2}
    assert corpus.changed == {"lone surrogates replaced by U+FFFD": 1}
    assert read(write_file(tmp_path / "b.jsonl", b'{"body": "x"}'), text_field="body")[0] == ["x"]


@pytest.mark.parametrize(
    ("raw", "code", "values"),
    [
        (b'{"body": 1, "title": 2}', "text-field-missing", ["line 1", "body, title", "--text-field"]),
        (b'\n{"text": \n', "line-not-json", ["line 2"]),
        (b"[" * 100_000, "json-invalid", []),
        (b'{\n"name": "x"\n}', "text-field-missing", ["name"]),
        (b'{"text": 5}', "text-field-not-text", ["line 1", "'text'", "5", "--text-field"]),
        (b"1" * 5000, "line-not-json", ["line 1"]),
    ],
)
def test_invalid_line_is_located(tmp_path, refused, raw, code, values):
    error = refused(write_file(tmp_path / "a.jsonl", raw))
    assert error.code == code and all(value in str(error) for value in ["a.jsonl", *values]), error


@pytest.mark.parametrize(
    ("raw", "documents", "skipped"),
    [
        (b'{"text": "a"}\n{"title": "b"}\n{"text": "c"}', ["a", "c"], {"records without the text field": 1}),
        (b'{"text": "a"}\n{"text": NaN}\n{"text": 5}', ["a"], {"records whose text field is not text": 2}),
        (b'{"text": "a"}\n{"text": "b', ["a"], {"lines that are not JSON": 1}),
        (b'{"text": "a"}\n' + b"[" * 100_000, ["a"], {"lines that are not JSON": 1}),
        (b'[{"text": "a"}, {"text": "b"}, {"text": ', ["a", "b"], {"lists of records that break off": 1}),
        (b'[{"text": "a"}, 5, null, "b"]', ["a", "b"], {"records whose text field is not text": 1, "empty records": 1}),
        (b'["a", "b"]\n["c"]', ["a", "b", "c"], {}),
        (b'\n [\n{\n"text": "a"\n}\n]', ["a"], {}),
        (
            b'{\n"name": "Ann",\n"messages": [{"text": "a"}, {"text": ["b", {"type": "link", "text": "c"}]}]\n}',
            ["a", "bc"],
            {},
        ),
        (b'{\n"text": "a"\n}', ["a"], {}),
        (b'{"text": ["a", "b"]}', ["a\nb"], {}),
        (
            b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "Ho"}]}',
            ["user: Hi\nbot: Ho"],
            {},
        ),
        (b'{"conversations": [{"from": "human", "value": "Hi"}]}', ["human: Hi"], {}),
        (b'{"text": [{"type": "text", "text": "Hi"}]}', ["Hi"], {}),
    ],
)
def test_records_are_found_and_the_others_counted(tmp_path, read, raw, documents, skipped):
    found, corpus = read(write_file(tmp_path / "a.json", raw))
    assert found == documents and corpus.skipped == skipped


@pytest.mark.parametrize(
    ("text_field", "text"),
    [("message.content", "a"), ("q,answer", "b\nc"), ("q, message.content", "b\na"), ("x.y", "d"), ("list.t", "e\nf")],
)
def test_text_field_takes_paths_and_several_names(tmp_path, read, text_field, text):
    record = {"message": {"content": "a"}, "q": "b", "answer": "c", "x.y": "d", "list": [{"t": "e"}, {"t": "f"}]}
    path = write_file(tmp_path / "a.jsonl", json.dumps(record).encode())
    assert read(path, text_field=text_field)[0] == [text]


def test_long_list_is_read_in_pieces(tmp_path, read, monkeypatch):
    monkeypatch.setattr(text, "PIECE_SIZE", 64)
    records = [{"text": f"record {i} é 中 " * (i % 7 + 1)} for i in range(300)]
    raw = json.dumps(records, ensure_ascii=False, indent=1).encode()
    assert read(write_file(tmp_path / "a.json", raw))[0] == [record["text"] for record in records]
