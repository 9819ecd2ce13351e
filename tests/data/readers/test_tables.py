"""CSV, TSV and parquet: a document per row."""

import gzip

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.support import write_file


def test_each_csv_row_is_a_document(tmp_path, read):
    quoted = b'id,text\n1,"one, ""two""\nthree"\n2,four\n'
    assert read(write_file(tmp_path / "a.csv", quoted))[0] == ['one, "two"\nthree', "four"]
    assert read(write_file(tmp_path / "a.tsv", b"text\tn\none\t1\n"))[0] == ["one"]
    assert read(write_file(tmp_path / "b.csv", b"n;text\n1;one\n"))[0] == ["one"]


def test_each_parquet_row_is_a_document(tmp_path, read, refused):
    path = str(tmp_path / "a.parquet")
    table = pyarrow.table({"text": ["one", None, "中 😀"] * 400, "n": [1, 2, 3] * 400})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    documents, corpus = read(path)
    assert documents == ["one", "中 😀"] * 400 and corpus.skipped == {"empty records": 400}
    error = refused(path, text_field="n")
    assert error.code == "column-not-text" and "int64" in str(error)
    error = refused(path, text_field="body")
    assert error.code == "text-field-missing" and "text, n" in str(error)


@pytest.mark.parametrize(
    ("name", "raw", "code", "values"),
    [
        ("a.csv", b"title,body\na,b\n", "text-field-missing", ["title, body", "--text-field"]),
        ("a.csv", b"", "text-field-missing", ["'text'"]),
        ("a.parquet", b"PAR1 nonsense PAR1", "parquet-damaged", []),
    ],
)
def test_invalid_table_is_refused(tmp_path, refused, name, raw, code, values):
    error = refused(write_file(tmp_path / name, raw))
    assert error.code == code and all(value in str(error) for value in [name, *values]), error


@pytest.mark.parametrize(
    ("name", "table", "documents", "skipped"),
    [
        ("a.csv", "text\nflour, sugar, eggs\nno comma\n", ["flour, sugar, eggs", "no comma"], 0),
        ("a.csv", 'text\n"flour, sugar"\n"two ""2"""\n', ["flour, sugar", 'two "2"'], 0),
        ("a.csv", "id,text,n\n1,good,a\n2\n3,good, night,b\n", ["good"], 2),
        (
            "a.tsv",
            'id\ttext\n1\t"No," she\n2\t20" rope\n3\t"Wait\n4\tlast\n',
            ['"No," she', '20" rope', '"Wait', "last"],
            0,
        ),
        ("a.tsv", 'id\ttext\n1\t"one\ntwo"\n2\tthree\n', ["one\ntwo", "three"], 0),
        ("a.csv", 'id,text\n1,"He said \\"stop\\" twice"\n2,"fine"\n', ['He said "stop" twice', "fine"], 0),
        ("a.csv", "id|text\n1|One, two\n2|Three\n", ["One, two", "Three"], 0),
        ("a.csv", "sep=;\nid;text\n1;Good morning, all\n", ["Good morning, all"], 0),
        ("a.csv", "text;note, if any\nGood, all;x\nGood night;y\n", ["Good, all", "Good night"], 0),
        ("a.csv", "id, text\n1, good morning\n", ["good morning"], 0),
        ("a.csv", '"id","text"\n"1","a"\n', ["a"], 0),
        ("a.csv", "id,text\n1,Good\0morning\n\n2,fine\n", ["Goodmorning", "fine"], 0),
        ("a.csv", 'id,text\n1,a\n2,"open\n' + "3,b\n" * 2500, ["a", '"open', *["b"] * 2500], 0),
        ("a.csv.gz", "id;text\n1;a\n", ["a"], 0),
    ],
)
def test_table_is_read_as_it_is_written(tmp_path, read, name, table, documents, skipped):
    raw = table.encode()
    found, corpus = read(write_file(tmp_path / name, gzip.compress(raw) if name.endswith(".gz") else raw))
    assert found == documents and corpus.skipped.total() == skipped


@pytest.mark.parametrize(
    ("text_field", "documents"),
    [("1", ["question", "What runs?"]), ("question,answer", ["What runs?\nA river."]), ("answer", ["A river."])],
)
def test_text_field_takes_numbers_and_several_names(tmp_path, read, text_field, documents):
    path = write_file(tmp_path / "a.csv", b"question,answer\nWhat runs?,A river.\n")
    assert read(path, text_field=text_field)[0] == documents


TEXTS = ["The mill.", "A heron é."]


@pytest.mark.parametrize(
    ("column", "text_field", "documents"),
    [
        (pyarrow.array(TEXTS * 2).dictionary_encode(), "text", TEXTS * 2),
        (pyarrow.array(TEXTS, pyarrow.string_view()), "text", TEXTS),
        (pyarrow.array([text.encode() for text in TEXTS]), "text", TEXTS),
        (pyarrow.array([b"caf\xe9"]), "text", ["caf\ufffd"]),
        (pyarrow.array([TEXTS, [TEXTS[0]]]), "text", ["\n".join(TEXTS), TEXTS[0]]),
        (pyarrow.array([{"en": text, "n": 1} for text in TEXTS]), "text.en", TEXTS),
        (pyarrow.array([[{"role": "user", "content": "Hi"}]]), "text", ["user: Hi"]),
    ],
    ids=["dictionary", "string view", "binary", "binary, damaged", "list", "struct", "turns"],
)
def test_parquet_column_of_any_type_of_text_is_read(tmp_path, read, column, text_field, documents):
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet"), text_field=text_field)[0] == documents


def test_fields_of_records_are_named_as_they_have_to_be_given(tmp_path, read, refused):
    column = pyarrow.array([{"en": text, "notes": {"n": 1}} for text in TEXTS])
    pyarrow.parquet.write_table(pyarrow.table({"translation": column, "id": [1, 2]}), tmp_path / "a.parquet")
    message = str(refused(str(tmp_path / "a.parquet")))
    assert "the table has translation.en, translation.notes.n, id" in message
    assert read(str(tmp_path / "a.parquet"), text_field="translation.en")[0] == TEXTS
