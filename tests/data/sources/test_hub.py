"""Datasets of the Hugging Face hub."""

import sys

import huggingface_hub
import pytest

from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.errors import BadInputError


@pytest.fixture
def requests(tmp_path, monkeypatch):
    """What was asked of the hub, which has one dataset."""
    for name in ("data/train-0.parquet", "data/test-0.parquet", "README.md", "data/train-1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    requests = []

    def snapshot_download(*args, **options):
        requests.append((args, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return requests


def test_training_files_are_chosen(requests):
    files = finish(resolve(["hf:owner/name"])).files
    assert [file.path.name for file in files] == ["train-0.parquet", "train-1.parquet"]
    assert requests[0][0] == ("owner/name",) and requests[0][1]["repo_type"] == "dataset"


def test_folder_without_text_is_refused(requests):
    with pytest.raises(BadInputError) as error:
        finish(resolve(["hf:owner/name/nosuch"]))
    assert error.value.code == "hub-has-no-text-files" and "hf:owner/name/nosuch" in str(error.value)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInputError, match="pip install huggingface_hub") as error:
        finish(resolve(["hf:owner/name"]))
    assert error.value.code == "hub-package-missing"
