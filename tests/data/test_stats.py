"""The summary of a text."""

import os
from pathlib import Path

import pytest

from tests.data.support import SAMPLES, write_file
from tiny_gpt.config import DataConfig
from tiny_gpt.data.progress import finish
from tiny_gpt.data.stats import scripts_of, summarize
from tiny_gpt.tokenizer.base import TOKENIZERS


def test_summary_counts_what_there_is(tmp_path):
    text = (SAMPLES["English"] + SAMPLES["Russian"]) * 100
    write_file(tmp_path / "a.txt", text.encode())
    write_file(tmp_path / "b.png", b"\x89PNG\0")
    summary = finish(summarize(DataConfig((str(tmp_path),))))
    assert summary.n_characters == len(text) and summary.n_bytes == len(text.encode())
    assert summary.n_documents == 1 and summary.skipped == ["skipped 1: is a picture (such as b.png)"]
    assert summary.scripts["Latin"] == pytest.approx(17 / 37, abs=0.02)
    tokens = {count.tokenizer: count.train_tokens for count in summary.tokens}
    assert tokens.keys() == TOKENIZERS.keys() and tokens["byte"] == summary.train_bytes
    assert tokens["bpe"] < tokens["char"] < tokens["byte"]
    assert not list((Path(os.environ["TINY_GPT_CACHE"]) / "tokens").glob(".*"))


def test_scripts_are_counted_by_letters():
    assert list(scripts_of("abc где 12 !")) == ["Latin", "Cyrillic"]
    assert scripts_of("猫猫猫ひ") == {"CJK": 0.75, "Hiragana": 0.25}
    assert scripts_of("123") == {}
    assert scripts_of("1ª Ａ 𝐀") == {"Latin": 1.0} and scripts_of("µ") == {"Greek": 1.0}
    assert list(scripts_of("aʼ")) == ["Latin", "other"]
