"""Known datasets and URLs: fetched once, then verified and used from the cache."""

import pytest

from tests.data.sources.conftest import CONTENT, SHA256
from tiny_gpt.data.progress import finish
from tiny_gpt.data.sources import python_docs
from tiny_gpt.data.sources.catalog import DATASETS, DatasetInfo, RemoteFile
from tiny_gpt.data.sources.fetch import downloads_folder, fetch_dataset, fetch_url, is_downloaded
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.errors import BadInputError


@pytest.fixture
def mine(server, tmp_path, monkeypatch):
    """The file of a dataset `mine`, whose hash no public source states, and whose first URL is dead."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    remote = RemoteFile("mine.txt", ("http://127.0.0.1:9/gone", server.url), None, None)
    monkeypatch.setitem(DATASETS, "mine", DatasetInfo("about", "license", "1 MB", (remote,)))
    return tmp_path / "downloads" / "mine.txt"


def test_url_is_kept_and_a_web_page_gets_its_suffix(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    paths = [finish(fetch_url(server.url)).path for _ in range(2)]
    assert paths[0] == paths[1] and paths[0].read_bytes() == CONTENT and len(server.requests) == 1
    server.type = "text/html; charset=utf-8"
    pages = [finish(fetch_url(server.url.replace("text.txt", "page/"))).path for _ in range(2)]
    assert pages[0] == pages[1] and pages[0].name == "page.html" and len(server.requests) == 2
    assert finish(resolve([server.url])).files[0].path == paths[0]


def test_dataset_is_fetched_once_from_the_first_url_that_works(server, mine):
    assert not is_downloaded("mine")
    for _ in range(2):
        assert finish(fetch_dataset("mine")).train[0].path.read_bytes() == CONTENT
    assert len(server.requests) == 1 and is_downloaded("mine")


def test_changed_file_is_refused(server, mine):
    finish(fetch_dataset("mine"))
    mine.write_bytes(b"other")
    with pytest.raises(BadInputError, match=rf"mine\.txt.*expected {SHA256}; delete it") as error:
        finish(fetch_dataset("mine"))
    assert error.value.code == "dataset-file-changed"


def test_file_added_by_hand_is_used_if_its_hash_is_right(server, mine, monkeypatch):
    remote = RemoteFile("mine.txt", (server.url,), len(CONTENT), SHA256)
    monkeypatch.setitem(DATASETS, "mine", DatasetInfo("about", "license", "1 MB", (remote,)))
    mine.parent.mkdir(parents=True)
    mine.write_bytes(CONTENT)
    for _ in range(2):
        assert finish(fetch_dataset("mine")).train[0].path == mine
    mine.write_bytes(CONTENT[::-1])
    with pytest.raises(BadInputError, match="delete it"):
        finish(fetch_dataset("mine"))
    assert server.requests == []


def test_without_network_the_error_lists_what_is_available(server, mine, monkeypatch):
    monkeypatch.setattr(python_docs, "read_python_docs", lambda: ["The manual."])
    server.shutdown()
    server.server_close()
    with pytest.raises(BadInputError, match="python-docs") as error:
        finish(fetch_dataset("mine"))
    assert error.value.code == "dataset-unavailable" and "\n" not in str(error.value)
    sources = finish(resolve(["mine|python-docs"]))
    assert sources.specs == ["python-docs"] and sources.files[0].path.name.startswith("python-docs")


def test_every_dataset_states_its_origin_and_license():
    for dataset in DATASETS.values():
        assert dataset.description and dataset.license and dataset.text_size
        for remote in dataset.files:
            assert all(url.startswith("https://") for url in remote.urls)
            assert remote.sha256 is None or len(remote.sha256) == 64


def test_downloads_are_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    assert downloads_folder() == tmp_path / "downloads"


def test_encoding_that_the_server_states_is_used(server, read):
    server.content, server.type = "naïve café".encode("latin-1"), "text/plain; charset=ISO-8859-1"
    for _ in range(2):  # the second time from the cache
        assert read(server.url)[0] == ["naïve café"]
