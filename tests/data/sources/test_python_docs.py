"""The corpus that every Python brings along."""

import json
from pathlib import Path

import pytest

from tests.data.support import write_file
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources import fetch, python_docs
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.errors import BadInputError


@pytest.mark.slow
def test_it_is_over_a_megabyte_of_english():
    documents = python_docs.read_python_docs()
    text = "\n".join(documents)
    assert len(text.encode()) > 1_000_000 and all(documents)
    words = text.split()
    assert sum(words.count(word) for word in ("the", "a", "is", "of", "to")) > len(words) / 15
    assert len(set(documents)) == len(documents)


def test_it_does_not_depend_on_the_order_of_directory_entries(tmp_path, monkeypatch):
    for name in ("b.py", "a/__init__.py", "a/c.py", "a/test/t.py", "site-packages/s.py"):
        write_file(tmp_path / name, f'"""Module {name}."""\ndef f():\n    """Function of {name}."""\n'.encode())
    write_file(tmp_path / "broken.py", b"def (:\n\0")
    expected = [f"Module {name}.\n\nf\nFunction of {name}." for name in ("a/__init__.py", "a/c.py", "b.py")]
    assert list(python_docs._docstrings(tmp_path)) == expected
    paths = sorted(tmp_path.rglob("*.py"), reverse=True)
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: iter(paths))
    assert list(python_docs._docstrings(tmp_path)) == expected


def test_python_without_documentation_says_what_to_use_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(python_docs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInputError, match="--data FILE") as error:
        finish(resolve([python_docs.NAME]))
    assert error.value.code == "python-docs-missing" and python_docs.NAME in str(error.value)


def test_package_docs_are_python_docs_and_those_of_packages_that_are_not_imported(tmp_path, monkeypatch):
    code = b'"""Of a package."""\nraise SystemExit("it was imported")\n'
    write_file(tmp_path / "lights" / "__init__.py", code)
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(python_docs, "PACKAGES", ("lights", "not_installed"))
    monkeypatch.setattr(python_docs, "read_python_docs", lambda: ["The manual."])
    monkeypatch.setattr(fetch, "version", lambda name: "1.0")
    (file,) = finish(resolve([python_docs.PACKAGE_DOCS])).files
    texts = [json.loads(line)["text"] for line in file.path.read_text().splitlines()]
    assert texts == ["The manual.", "Of a package."]


def test_package_source_is_the_code_of_python_and_of_packages(tmp_path, monkeypatch):
    write_file(tmp_path / "lib" / "a.py", b"import b\n" * 40_000)
    write_file(tmp_path / "lib" / "b.py", b"B = 1\n" * 40_000)
    write_file(tmp_path / "lib" / "site-packages" / "c.py", b"C = 1\n")
    write_file(tmp_path / "lights" / "__init__.py", b'raise SystemExit("it was imported")\n')
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(python_docs, "PACKAGES", ("lights",))
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    monkeypatch.setattr(fetch, "version", lambda name: "1.0")
    (file,) = finish(resolve([python_docs.PACKAGE_SOURCE])).files
    texts = [json.loads(line)["text"] for line in file.path.read_text().splitlines()]
    assert [text.split("\n")[0] for text in texts] == ["B = 1", 'raise SystemExit("it was imported")']
    (tmp_path / "lib" / "b.py").unlink()
    monkeypatch.setattr(fetch, "version", lambda name: "2.0")
    with pytest.raises(BadInputError, match="source code"):
        finish(resolve([python_docs.PACKAGE_SOURCE]))
