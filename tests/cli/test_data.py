"""`tiny-gpt data`."""

import json

import pytest


def test_data_prints_statistics(command, text):
    done = command("tiny-gpt", "data", text)
    assert done.code == 0 and done.err == ""
    for words in ("characters", "Latin 100.0%", "held out", "bpe", "bytes/token", "suits this text"):
        assert words in done.out
    figures = json.loads(command("tiny-gpt", "data", text, "--json").out)
    assert figures["n_bytes"] == text.stat().st_size and figures["n_documents"] == 1


def test_data_list_shows_the_datasets(command):
    done = command("tiny-gpt", "data", "list")
    assert done.code == 0 and all(name in done.out for name in ("python-docs", "wikitext-103", "CC BY-SA"))


@pytest.mark.parametrize(
    ("args", "exit_code", "code", "value"),
    [
        ([], 2, "text-not-named", "tiny-gpt data list"),
        (["nosuch.txt"], 3, "source-not-found", "nosuch.txt"),
    ],
)
def test_data_errors_name_the_fault(command, tmp_path, monkeypatch, args, exit_code, code, value):
    monkeypatch.chdir(tmp_path)
    command("tiny-gpt", "data", *args).assert_error(exit_code, code, value)
