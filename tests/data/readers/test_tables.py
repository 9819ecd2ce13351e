"""CSV, TSV and parquet: a document per row."""

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
        ("a.csv", b'text\n"open', "csv-row-invalid", ["line 2"]),
        ("a.csv", b"", "text-field-missing", ["'text'"]),
        ("a.parquet", b"PAR1 nonsense PAR1", "parquet-damaged", []),
    ],
)
def test_invalid_table_is_refused(tmp_path, refused, name, raw, code, values):
    error = refused(write_file(tmp_path / name, raw))
    assert error.code == code and all(value in str(error) for value in [name, *values]), error
