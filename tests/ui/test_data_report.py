"""What `tiny-gpt data` prints."""

import base64

from tests.data.support import SAMPLES, write_file
from tiny_gpt.config import DataConfig
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.data.stats import summarize
from tiny_gpt.tokenizer.base import TOKENIZERS
from tiny_gpt.ui.data_report import dataset_lines, summary_lines


def test_every_dataset_and_its_url_is_listed():
    lines = list(dataset_lines())
    assert all(len(line) <= 80 for line in lines if "://" not in line)
    for name, dataset in DATASETS.items():
        assert any(line.startswith(name) and dataset.license in line for line in lines)
        assert all(f"    {remote.urls[0]}" in lines for remote in dataset.files)
    assert all(len(line) <= 110 for line in lines)


def report_on(*paths):
    config = DataConfig(tuple(map(str, paths)))
    return "\n".join(summary_lines(finish(summarize(config)), config.data))


def test_report_speaks_of_the_text_alone(tmp_path):
    report = report_on(write_file(tmp_path / "a.txt", SAMPLES["English"].encode() * 1000))
    assert all(name in report for name in TOKENIZERS) and "Latin 100.0%" in report
    assert "overnight" not in report and "made of" not in report


def test_report_of_a_folder_names_kinds_and_what_is_no_prose(tmp_path):
    write_file(tmp_path / "a.txt", SAMPLES["English"].encode() * 500)
    write_file(tmp_path / "b.md", SAMPLES["English"].encode() * 100)
    write_file(tmp_path / "wiki.xml", b"<page><title>One</title><text>a word</text></page>\n" * 200)
    write_file(tmp_path / "lib.js", b"function a(b){return b(c[d],e);}var f={g:h};" * 200)
    write_file(tmp_path / "mail.eml", base64.b64encode(bytes(range(256)) * 20))
    report = report_on(tmp_path)
    assert "made of     .txt: 1 file, " in report and ".md: 1 file, " in report
    for suffix, look in ((".xml", "markup"), (".js", "minified code"), (".eml", "encoded data")):
        (line,) = [line for line in report.splitlines() if f"{suffix}: 1 file" in line]
        assert line.endswith(f"1 of them looks like {look}")


def test_nothing_compared_is_no_zero(tmp_path):
    report = report_on(write_file(tmp_path / "short.txt", b"short line\n" * 3000))
    assert report.count("cannot tell") == 2 and " 0.0%" not in report
