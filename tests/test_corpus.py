"""Text in: what is read, what is refused with which words, and that splitting loses nothing."""

from pathlib import Path

import pytest

from tiny_gpt.config import DataConfig
from tiny_gpt.data import corpus, python_docs
from tiny_gpt.data.corpus import MANY_DOCUMENTS, VALIDATION_PART, read_corpus, split
from tiny_gpt.data.prepare import prepare
from tiny_gpt.errors import BadInputError


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def text_of(source):
    read = read_corpus([source])
    return "".join(read.train + read.val)


def refusal(source):
    with pytest.raises(BadInputError) as caught:
        read_corpus([source])
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xef\xbb\xbfabc", "abc"),
        (b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"),
        ("né 中 😀".encode(), "né 中 😀"),
        (b"a", "a"),
    ],
    ids=["byte order mark", "line ends", "unicode", "one character"],
)
def test_a_file_is_read_as_utf8_with_plain_line_ends(tmp_path, raw, text):
    assert text_of(written(tmp_path / "a.txt", raw)) == text


def test_a_file_that_is_not_utf8_is_refused_with_the_place_of_its_first_odd_byte(tmp_path):
    message = refusal(written(tmp_path / "latin.txt", b"x" * 1234 + "é".encode("latin-1") + b"x"))
    assert "latin.txt" in message and "byte 1,234 is 0xe9" in message and "save it as UTF-8" in message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "zero bytes"),
        ("abc".encode("utf-16"), "not a text file"),
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
    ids=["png", "utf-16", "empty", "blank", "only a byte order mark"],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, raw, words):
    message = refusal(written(tmp_path / "odd.txt", raw))
    assert "odd.txt" in message and words in message


@pytest.mark.parametrize("source", ["nosuch.txt", "~nosuchuser/a.txt", "a\0b"])
def test_a_missing_source_is_told_with_where_it_was_sought_and_what_there_is(source):
    message = refusal(source)
    assert source in message and str(Path.cwd()) in message and python_docs.NAME in message


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path / "a.txt", b"abc")
    assert text_of("~/a.txt") == "abc"


def test_a_folder_gives_its_texts_in_the_order_of_their_names_and_tells_what_it_left_out(tmp_path):
    for name, raw in {
        "b.txt": b"second",
        "a/z.md": b"first",
        "c/deep/er/x": b"third",
        ".hidden": b"secret",
        ".git/config": b"secret",
        "c/.cache/x.txt": b"secret",
        "image.png": b"\x89PNG\0",
        "latin.txt": b"\xe9",
        "nothing.txt": b"\n",
    }.items():
        written(tmp_path / name, raw)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    read = read_corpus([str(tmp_path)])
    assert read.train == ["first", "second", "third"]
    assert read.n_documents == 3 and read.n_characters == len("firstsecondthird")
    for name, told in zip(("image.png", "latin.txt", "nothing.txt"), read.skipped, strict=True):
        assert name in told


def test_a_folder_without_text_is_refused_with_a_reason(tmp_path):
    assert "no text found" in refusal(str(tmp_path))
    written(tmp_path / "latin.txt", b"\xe9")
    message = refusal(str(tmp_path))
    assert "no text found" in message and "not UTF-8" in message


def test_sources_stand_in_the_order_given(tmp_path):
    one, two = written(tmp_path / "1.txt", b"one"), written(tmp_path / "2.txt", b"two")
    assert read_corpus([two, one]).train == ["two", "one"]


@pytest.mark.parametrize("lengths", [[10], [1000], [3, 9, 10, 11, 25], [57] * (MANY_DOCUMENTS - 1)])
def test_few_documents_each_hold_out_their_last_tenth(lengths):
    documents = [chr(ord("A") + i) * length for i, length in enumerate(lengths)]
    train, val = split(documents)
    held_out = iter(val)
    ends = [next(held_out) if len(document) >= VALIDATION_PART else "" for document in documents]
    assert list(held_out) == []
    assert [start + end for start, end in zip(train, ends, strict=True)] == documents
    assert [len(end) for end in ends] == [length // VALIDATION_PART for length in lengths]


@pytest.mark.parametrize("n_documents", [MANY_DOCUMENTS, MANY_DOCUMENTS + 7, 1000])
def test_many_documents_hold_out_every_tenth_whole(n_documents):
    documents = [f"document {i}" for i in range(n_documents)]
    train, val = split(documents)
    assert val == documents[VALIDATION_PART - 1 :: VALIDATION_PART]
    assert sorted(train + val) == sorted(documents) and len(train) + len(val) == n_documents


@pytest.mark.parametrize(("n_characters", "advice"), [(9, None), (100, "--block-size 9"), (1280, "--block-size 127")])
def test_a_text_shorter_than_a_block_is_refused_with_a_block_size_that_works(tmp_path, n_characters, advice):
    source = written(tmp_path / "short.txt", b"x" * n_characters)
    with pytest.raises(BadInputError, match="the text is too short") as caught:
        prepare(DataConfig((source,)), 128)
    if advice is None:
        assert "--block-size" not in str(caught.value)
    else:
        assert str(caught.value).endswith(advice)
        prepare(DataConfig((source,)), int(advice.split()[1]))


def test_python_docs_is_more_than_a_megabyte_of_english():
    documents = python_docs.read_python_docs()
    text = "\n".join(documents)
    assert len(text.encode()) > 1_000_000 and all(documents)
    words = text.split()
    assert sum(words.count(word) for word in ("the", "a", "is", "of", "to")) > len(words) / 15
    assert len(set(documents)) == len(documents)


def test_python_docs_is_the_same_in_whatever_order_the_disk_lists_files(tmp_path, monkeypatch):
    for name in ("b.py", "a/__init__.py", "a/c.py", "a/test/t.py", "site-packages/s.py"):
        written(tmp_path / name, f'"""Module {name}."""\ndef f():\n    """Function of {name}."""\n'.encode())
    written(tmp_path / "broken.py", b"def (:\n\0")
    expected = [f"Module {name}.\n\nf\nFunction of {name}." for name in ("a/__init__.py", "a/c.py", "b.py")]
    assert list(python_docs._docstrings(tmp_path)) == expected
    listed = sorted(tmp_path.rglob("*.py"), reverse=True)
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter(listed))
    assert list(python_docs._docstrings(tmp_path)) == expected


def test_a_python_without_its_documentation_says_what_to_pass_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(python_docs.importlib.util, "find_spec", lambda name: None)
    message = refusal(python_docs.NAME)
    assert "--data FILE" in message and python_docs.NAME in message


def test_a_corpus_is_added_by_one_row(monkeypatch):
    monkeypatch.setitem(corpus.CORPORA, "mine", lambda: ["0123456789"])
    assert read_corpus(["mine"]).val == ["9"]
