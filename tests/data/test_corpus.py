"""Sources in, one text out: what is read, what is refused with which words, and that nothing is left out unsaid."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tiny_gpt.config import DataConfig
from tiny_gpt.data import corpus, text_file
from tiny_gpt.data.choose_tokenizer import default_vocab_size
from tiny_gpt.data.corpus import read_corpus
from tiny_gpt.data.prepare import prepare
from tiny_gpt.data.progress import Notice, finish
from tiny_gpt.data.readers.base import ReadOptions
from tiny_gpt.data.sources import python_docs
from tiny_gpt.data.sources.files import content_hash
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.data.stats import scripts_of, summarize
from tiny_gpt.data.text_file import SEPARATOR
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.tokenizer.base import decode

SAMPLES = {
    "English": "The cat sat on the mat.\n",
    "Russian": "Кошка сидела на коврике.\n",
    "Chinese": "猫坐在垫子上。\n",
    "Arabic": "جلست القطة على السجادة.\n",
    "Hindi": "बिल्ली चटाई पर बैठी थी।\n",
    "Greek": "Η γάτα κάθισε στο χαλί.\n",
    "Japanese": "猫はマットの上に座った。\n",
    "Thai": "แมวนั่งบนเสื่อ\n",
    "marks": "e\u0301 👩‍👩‍👧 🏳️‍🌈 n\u0303\n",
}


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@pytest.fixture
def read(tmp_path_factory):
    """`read(source, ...)`: the documents and the corpus of some sources."""

    def read(*words, **options):
        sources = finish(resolve(words))
        found = finish(read_corpus(sources.files, tmp_path_factory.mktemp("place") / "text", ReadOptions(**options)))
        found.skipped.update(sources.skipped)
        text = b"".join(chunk.read() for chunk in found.text.whole().chunks()).decode()
        return text.split(SEPARATOR.decode()) if len(found.text.documents) > 1 else [text], found

    return read


@pytest.fixture
def refusal(read):
    def refusal(*words, **options):
        with pytest.raises(BadInputError) as caught:
            read(*words, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refusal


@pytest.mark.parametrize("script", SAMPLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_any_script_is_read_by_its_byte_order_mark(tmp_path, read, script, encoding):
    text = SAMPLES[script] * 20
    assert read(written(tmp_path / "a.txt", text.encode(encoding)))[0] == [text]


@pytest.mark.parametrize("script", SAMPLES)
@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_every_script_comes_back_from_the_store(tmp_path, script, tokenizer):
    text = SAMPLES[script] * 50
    dataset = finish(prepare(DataConfig((written(tmp_path / "a.txt", text.encode()),), tokenizer=tokenizer), 4))
    ids = [*dataset.train.ids.tolist(), *dataset.val.ids.tolist()]
    assert decode(dataset.tokenizer, ids) == text
    assert dataset.train.n_bytes + dataset.val.n_bytes == len(text.encode())


@pytest.mark.parametrize(("raw", "text"), [(b"a\r\nb\rc\n\r\n", "a\nb\nc\n\n"), (b"a", "a")])
def test_line_ends_are_made_plain(tmp_path, read, raw, text):
    assert read(written(tmp_path / "a.txt", raw))[0] == [text]


def test_what_lies_across_the_border_of_two_reads_is_whole(tmp_path, read):
    border = 1 << 20
    for text, encoded in (("é", "é".encode()), ("\n", b"\r\n"), ("😀", "😀".encode())):
        for before in range(len(encoded) + 1):
            raw = b"x" * (border - before) + encoded + b"y"
            assert read(written(tmp_path / "a.txt", raw))[0] == ["x" * (border - before) + text + "y"]


@pytest.mark.parametrize("place", [3, 1234, (1 << 20) - 1, 1 << 20, 1_500_000])
def test_what_is_not_utf8_is_refused_with_the_place_of_its_first_odd_byte(tmp_path, read, refusal, place):
    path = written(tmp_path / "latin.txt", b"x" * place + "é".encode("latin-1") + b"x" * 10)
    message = refusal(path)
    assert "latin.txt" in message and f"byte {place:,} is 0xe9" in message and "--encoding cp1252" in message
    assert read(path, encoding="cp1252")[0] == ["x" * place + "é" + "x" * 10]
    assert f"byte {place:,}" in refusal(path, encoding="ascii")


def test_an_unknown_encoding_is_refused():
    with pytest.raises(BadInputError, match=r"--encoding klingon: unknown encoding"):
        ReadOptions(encoding="klingon")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not a text file"),
        (b"%PDF-1.7 text", "is a PDF"),
        (b"PK\x03\x04word/document.xml", "office document"),
        (b"", "is empty"),
        (b" \r\n\t\n", "is empty"),
        (b"\n" * 3_000_000, "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
    ],
    ids=["png", "pdf", "docx", "empty", "blank", "only newlines", "only a byte order mark"],
)
def test_what_is_no_text_is_refused_by_name_and_skipped_in_a_folder(tmp_path, read, refusal, raw, words):
    message = refusal(written(tmp_path / "odd.txt", raw))
    assert "odd.txt" in message and words in message
    written(tmp_path / "text.txt", b"good")
    documents, found = read(str(tmp_path))
    assert documents == ["good"] and found.skipped.total() == 1
    assert next(iter(found.examples.values())) == "odd.txt" and words in next(iter(found.skipped))


@pytest.mark.parametrize("source", ["nosuch.txt", "~nosuchuser/a.txt", "a\0b", "no*such.txt", "no|such"])
def test_a_missing_source_is_told_with_where_it_was_sought(refusal, source):
    message = refusal(source)
    assert source.split("|")[-1] in message and str(Path.cwd()) in message


def test_home_is_understood(tmp_path, read, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    written(tmp_path / "a.txt", b"abc")
    assert read("~/a.txt")[0] == ["abc"]


def test_a_folder_gives_its_texts_in_order_and_counts_what_it_left_out(tmp_path, read):
    for name, raw in {
        "b.txt": b"second",
        "a/z.md": b"first",
        "c/deep/er/x": b"third",
        ".hidden": b"secret",
        "c/.cache/x.txt": b"secret",
        "image.png": b"\x89PNG\0",
        "latin.txt": b"\xe9",
        "nothing.txt": b"\n",
    }.items():
        written(tmp_path / name, raw)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    (tmp_path / "d_second_name.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "again.txt").symlink_to(tmp_path / "again.txt")
    documents, found = read(str(tmp_path))
    assert documents == ["first", "second", "third"]
    assert found.skipped == {
        "hidden": 2,
        "broken link": 2,
        "another name of a file or folder already read": 2,
        "is not a text file": 1,
        "is not UTF-8 text": 1,
        "is empty": 1,
    }


def test_a_folder_without_text_is_refused_with_a_reason(tmp_path, refusal):
    assert "no file found" in refusal(str(tmp_path))
    written(tmp_path / "latin.txt", b"\xe9")
    assert "no text found" in (message := refusal(str(tmp_path))) and "not UTF-8" in message


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid"), reason="Windows has other permissions")
def test_what_may_not_be_read_is_told(tmp_path, read, refusal, monkeypatch):
    path = written(tmp_path / "locked.txt", b"secret")
    written(tmp_path / "open.txt", b"public")
    opened = open

    def refusing(file, mode="r", **more):  # the tests may run as root, whom no permission stops
        if str(file) == path and "r" in mode:
            raise PermissionError(13, "Permission denied")
        return opened(file, mode, **more)

    monkeypatch.setattr(corpus, "open", refusing, raising=False)
    assert "locked.txt cannot be read (Permission denied)" in refusal(path)
    documents, found = read(str(tmp_path))
    assert documents == ["public"] and found.skipped.total() == 1


def test_sources_stand_in_the_order_given_and_patterns_match(tmp_path, read):
    one, two = written(tmp_path / "1.txt", b"one"), written(tmp_path / "sub" / "2.txt", b"two")
    assert read(two, one)[0] == ["two", "one"]
    assert read(str(tmp_path / "**" / "*.txt"))[0] == ["one", "two"]


@pytest.mark.parametrize(
    ("suffix", "compress"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path, read, refusal, suffix, compress):
    text = "".join(SAMPLES.values()) * 300
    raw = compress(text.encode())
    assert read(written(tmp_path / f"a.txt{suffix}", raw))[0] == [text]
    assert read(written(tmp_path / f"b.jsonl{suffix}", compress(json.dumps({"text": "one"}).encode())))[0] == ["one"]
    for odd in (raw[: len(raw) // 2], b"nonsense" * 10):
        assert f"odd{suffix}" in refusal(written(tmp_path / f"odd{suffix}", odd))


def test_zstandard_is_read_whole_also_in_several_frames(tmp_path, read, refusal):
    def compress(text):
        sink = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(text.encode())
        return sink.getvalue().to_pybytes()

    text = "".join(SAMPLES.values()) * 300
    assert read(written(tmp_path / "a.txt.zst", compress(text) + compress("more")))[0] == [text + "more"]
    assert "odd.zst" in refusal(written(tmp_path / "odd.zst", compress(text)[:-40]))
    assert "odd.zst" in refusal(written(tmp_path / "odd.zst", b"nonsense" * 10))


def test_json_lines_give_a_document_each(tmp_path, read):
    rows = [{"text": "one\r\ntwo"}, {"text": ""}, {"text": None}, {"text": "half \ud800 a pair"}, {"text": "中 😀"}]
    raw = "\n\n".join(map(json.dumps, rows)) + '\n"bare"'
    documents, found = read(written(tmp_path / "a.jsonl", raw.encode()))
    assert documents == ["one\ntwo", "half \ufffd a pair", "中 😀", "bare"]
    assert found.skipped == {"empty records": 2, "lone surrogates replaced by U+FFFD": 1}
    assert read(written(tmp_path / "b.jsonl", b'{"body": "x"}'), text_field="body")[0] == ["x"]


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": 1, "title": 2}', ["line 2", "body, title", "--text-field"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', ["line that is not JSON (line 2"]),
        ("a.jsonl", b"[" * 100_000, ["line 1"]),
        ("a.jsonl", b'{"text": 5}', ["line 1", "'text' that is not text", "--text-field"]),
        ("a.jsonl", b"1" * 5000, ["line 1"]),
        ("a.csv", b"title,body\na,b\n", ["title, body", "--text-field"]),
        ("a.csv", b'text\n"open', ["line 2", "not a row"]),
        ("a.csv", b"", ["no field 'text'"]),
        ("a.parquet", b"PAR1 nonsense PAR1", ["not a complete parquet"]),
        ("a.epub", b"nonsense", ["not a readable EPUB"]),
        ("a.zip", b"nonsense", ["damaged"]),
    ],
)
def test_a_damaged_table_or_book_is_refused_with_the_place(tmp_path, refusal, name, raw, words):
    message = refusal(written(tmp_path / name, raw))
    assert name in message and all(word in message for word in words), message


def test_tables_give_a_document_a_row(tmp_path, read, refusal):
    assert read(written(tmp_path / "a.csv", b'id,text\n1,"one, ""two""\nthree"\n2,four\n'))[0] == [
        'one, "two"\nthree',
        "four",
    ]
    assert read(written(tmp_path / "a.tsv", b"text\tn\none\t1\n"))[0] == ["one"]
    assert read(written(tmp_path / "b.csv", b"n;text\n1;one\n"))[0] == ["one"]
    path = str(tmp_path / "a.parquet")
    table = pyarrow.table({"text": ["one", None, "中 😀"] * 400, "n": [1, 2, 3] * 400})
    pyarrow.parquet.write_table(table, path, row_group_size=100)
    documents, found = read(path)
    assert documents == ["one", "中 😀"] * 400 and found.skipped == {"empty records": 400}
    assert "it holds int64" in refusal(path, text_field="n")
    assert "text, n" in refusal(path, text_field="body")


PAGE = """<!doctype html><html><head><title>T</title><style>p {}</style><meta charset="utf-8"></head><body>
<nav>menu</nav><h1>A&amp;B</h1><p>One   <b>bold</b>
line.<p>Two<br>three &eacute;<script>var x = "<p>no</p>";</script><ul><li>a<li>b</ul></body></html>"""


def test_web_pages_give_their_readable_text(tmp_path, read):
    text = read(written(tmp_path / "a.html", PAGE.encode()))[0][0]
    assert text.split() == ["A&B", "One", "bold", "line.", "Two", "three", "é", "a", "b"]
    assert "One bold line.\n\nTwo\nthree é\n\na\nb" in text
    latin = PAGE.replace("utf-8", "iso-8859-1").replace("&eacute;", "é").encode("latin-1")
    assert read(written(tmp_path / "b.htm", latin))[0][0] == text


def book(path, chapters, **more):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("META-INF/container.xml", '<c><rootfiles><rootfile full-path="O/c.opf"/></rootfiles></c>')
        items = "".join(f'<item id="i{i}" href="c{i}.xhtml"/>' for i in range(len(chapters)))
        spine = "".join(f'<itemref idref="i{i}"/>' for i in range(len(chapters)))
        archive.writestr("O/c.opf", f"<package><manifest>{items}</manifest><spine>{spine}</spine></package>")
        for i, chapter in reversed(list(enumerate(chapters))):
            archive.writestr(f"O/c{i}.xhtml", f"<html><body><p>{chapter}</p></body></html>")
        for name, content in more.items():
            archive.writestr(name, content)
    return str(path)


def test_books_give_their_chapters_in_order(tmp_path, read):
    assert read(book(tmp_path / "a.epub", ["First é", "Second"]))[0] == ["First é\n\nSecond\n"]


def test_archives_give_each_text_and_count_the_rest(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in (
            ("b.txt", "second"),
            ("a/a.txt", "first"),
            ("c.png", "\0\1"),
            ("d.jsonl", '{"text": "3"}'),
        ):
            archive.writestr(name, content)
    documents, found = read(str(tmp_path / "a.zip"))
    assert documents == ["first", "second", "3"] and found.skipped.total() == 1


def test_any_damage_to_any_format_is_refused_or_read_never_a_crash(tmp_path, read):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two"] * 20}), str(tmp_path / "a.parquet"))
    book(tmp_path / "a.epub", ["First", "Second"])
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "text " * 50)
    whole = {name: (tmp_path / name).read_bytes() for name in ("a.parquet", "a.epub", "a.zip")}
    text = "text é " * 50
    whole |= {"a.gz": gzip.compress(text.encode()), "a.xz": lzma.compress(text.encode()), "a.html": PAGE.encode()}
    whole |= {"a.bz2": bz2.compress(text.encode()), "a.csv": b'text,n\n"a",1\n', "a.jsonl": b'{"text": "a"}\n' * 3}
    rng = random.Random(0)
    for name, raw in whole.items():
        for _ in range(60):
            odd = bytearray(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw)
            for _ in range(rng.randint(0, 3)):
                if odd:
                    odd[rng.randrange(len(odd))] = rng.randrange(256)
            try:
                read(written(tmp_path / "odd" / name, bytes(odd)))
            except BadInputError as error:
                assert name in str(error)


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, refusal, monkeypatch):
    path = tmp_path / "growing.txt"
    written(path, b"some text")
    read_documents = corpus.read_documents

    def growing(*args, **more):
        yield from read_documents(*args, **more)
        with open(path, "ab") as file:
            file.write(b"more")

    monkeypatch.setattr(corpus, "read_documents", growing)
    assert "growing.txt changed while it was read" in refusal(str(path))


def test_standard_input_is_kept_so_that_the_same_can_be_used_again(monkeypatch, read):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("piped né\n".encode() * 40)))
    dataset = finish(prepare(DataConfig(("-",)), 4))
    assert decode(dataset.tokenizer, dataset.train.ids.tolist()).startswith("piped né\n")
    assert read(*dataset.sources)[0] == ["piped né\n" * 40]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(BadInputError, match="standard input is empty"):
        finish(prepare(DataConfig(("-",)), 4))


def test_what_cannot_be_had_is_replaced_by_what_was_named_as_its_stand_in(tmp_path):
    path = written(tmp_path / "here.txt", b"text")
    steps = resolve([f"nosuch|{path}"])
    note = next(steps)
    assert isinstance(note, Notice) and "nosuch is unavailable" in note.text and path in note.text
    assert finish(steps).specs == [path]


def test_a_text_of_its_own_validates_and_text_on_both_sides_is_told(tmp_path):
    lines = [f"This is line number {i} of a text that is long enough to be a passage.\n" for i in range(200)]
    train = written(tmp_path / "train.txt", "".join(lines[:150]).encode())
    val = written(tmp_path / "val.txt", "".join(lines[100:]).encode())
    dataset = finish(prepare(DataConfig((train,), val=(val,)), 8))
    assert decode(dataset.tokenizer, dataset.val.ids.tolist()) == "".join(lines[100:])
    assert decode(dataset.tokenizer, dataset.train.ids.tolist()) == "".join(lines[:150])
    assert any("50% of the validation text also occurs in the training text" in note for note in dataset.notes)


def test_a_second_preparation_reads_no_text_and_another_setting_or_text_does(tmp_path, monkeypatch):
    path = written(tmp_path / "a.txt", b"some words of text\n" * 100)
    other = written(tmp_path / "b.txt", b"some words of text\n" * 101)
    reads = []
    read_corpus = corpus.read_corpus
    monkeypatch.setattr("tiny_gpt.data.corpus.read_corpus", lambda *args: reads.append(args[0]) or read_corpus(*args))
    first = finish(prepare(DataConfig((path,), tokenizer="bpe"), 4))
    for config, n_reads in [
        (DataConfig((path,), tokenizer="bpe"), 1),
        (DataConfig((path,), tokenizer="bpe", vocab_size=300), 2),
        (DataConfig((path,), tokenizer="char"), 3),
        (DataConfig((path,), tokenizer="char", val_fraction=0.2), 4),
        (DataConfig((other,), tokenizer="bpe"), 5),
        (DataConfig((path, other), tokenizer="bpe"), 6),
    ]:
        again = finish(prepare(config, 4))
        assert len(reads) == n_reads
    again = finish(prepare(DataConfig((path,), tokenizer="bpe"), 4))
    assert again.train.ids.tolist() == first.train.ids.tolist() and len(reads) == 6
    assert finish(content_hash(finish(resolve([path])).files)) != finish(content_hash(finish(resolve([other])).files))


def test_a_full_disk_while_reading_leaves_nothing(tmp_path, fill_disk, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    source = written(tmp_path / "a.txt", b"some text\n" * 1000)
    fill_disk(text_file, 500)
    with pytest.raises(OutOfResourcesError, match=r"no space left.*TINY_GPT_CACHE"):
        finish(prepare(DataConfig((source,)), 4))
    assert list((tmp_path / "cache" / "tokens").iterdir()) == []


@pytest.mark.parametrize(("n_characters", "advice"), [(9, None), (100, "--block-size 9"), (1280, "--block-size 127")])
def test_a_text_shorter_than_a_block_is_refused_with_a_block_size_that_works(tmp_path, n_characters, advice):
    source = written(tmp_path / "short.txt", b"x" * n_characters)
    with pytest.raises(BadInputError, match="the text is too short") as caught:
        finish(prepare(DataConfig((source,)), 128))
    if advice is None:
        assert "--block-size" not in str(caught.value)
    else:
        assert str(caught.value).endswith(advice)
        finish(prepare(DataConfig((source,)), int(advice.split()[1])))


def test_a_summary_counts_what_there_is(tmp_path):
    text = (SAMPLES["English"] + SAMPLES["Russian"]) * 100
    written(tmp_path / "a.txt", text.encode())
    written(tmp_path / "b.png", b"\x89PNG\0")
    summary = finish(summarize(DataConfig((str(tmp_path),))))
    assert summary.n_characters == len(text) and summary.n_bytes == len(text.encode())
    assert summary.n_documents == 1 and summary.skipped == ["skipped 1: is not a text file (such as b.png)"]
    assert summary.scripts["Latin"] == pytest.approx(17 / 37, abs=0.02)
    of = {count.tokenizer: count for count in summary.tokens}
    assert of["byte"].train_tokens == summary.train_bytes
    assert of["bpe"].train_tokens < of["char"].train_tokens < of["byte"].train_tokens
    assert not list((Path(os.environ["TINY_GPT_CACHE"]) / "tokens").glob(".*"))


def test_scripts_are_told_by_their_letters():
    assert list(scripts_of("abc где 12 !")) == ["Latin", "Cyrillic"]
    assert scripts_of("猫猫猫ひ") == {"CJK": 0.75, "Hiragana": 0.25}
    assert scripts_of("123") == {}


@pytest.mark.parametrize(("n_bytes", "vocab_size"), [(1000, 512), (1_500_000, 1024), (20_000_000, 4096), (10**9, 8192)])
def test_a_larger_text_gets_a_larger_vocabulary(n_bytes, vocab_size):
    assert default_vocab_size(n_bytes) == vocab_size


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
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(python_docs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match=r"--data FILE") as caught:
        finish(resolve([python_docs.NAME]))
    assert python_docs.NAME in str(caught.value)
