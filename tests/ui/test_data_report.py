"""What `tiny-gpt data` prints."""

from dataclasses import replace

from tests.data.support import SAMPLES, write_file
from tiny_gpt.config import DataConfig, RunConfig
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources.catalog import DATASETS
from tiny_gpt.data.stats import summarize
from tiny_gpt.tokenizer.base import TOKENIZERS
from tiny_gpt.ui.data_report import OVERFITTING_EPOCHS, dataset_lines, summary_lines


def test_every_dataset_and_its_url_is_listed():
    lines = list(dataset_lines())
    for name, dataset in DATASETS.items():
        assert any(line.startswith(name) and dataset.license in line for line in lines)
        assert all(f"    {remote.urls[0]}" in lines for remote in dataset.files)
    assert all(len(line) <= 110 for line in lines)


def test_report_warns_of_overfitting_by_epochs(tmp_path):
    config = RunConfig(data=DataConfig((write_file(tmp_path / "a.txt", SAMPLES["English"].encode() * 1000),)))
    summary = finish(summarize(config.data))
    report = "\n".join(summary_lines(summary, config))
    assert all(name in report for name in TOKENIZERS) and "Latin 100.0%" in report
    assert "--epochs" in report, "the overnight recipe reads so short a text too often"
    enough = [replace(count, train_tokens=10**12 // OVERFITTING_EPOCHS) for count in summary.tokens]
    assert "--epochs" not in "\n".join(summary_lines(replace(summary, tokens=enough), config))
