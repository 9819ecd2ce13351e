"""Downloads from a server that stalls, breaks off, lies and recovers: whole and right, or a clear line and nothing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tiny_gpt.data.progress import StageProgress, finish
from tiny_gpt.data.sources import download, fetch
from tiny_gpt.data.sources.catalog import DATASETS, DatasetInfo, RemoteFile
from tiny_gpt.data.sources.download import DownloadError
from tiny_gpt.data.sources.fetch import fetch_dataset, fetch_url
from tiny_gpt.data.sources.resolve import resolve
from tiny_gpt.errors import BadInputError, OutOfResourcesError
from tiny_gpt.ui.data_report import dataset_lines

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT as `plan` says, request by request; afterwards as it should be."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.sent = [], [], 0
        self.content, self.etag, self.type = CONTENT, '"one"', "text/plain"
        self.address = f"http://127.0.0.1:{self.server_port}/folder/text.txt"

    def handle_error(self, request, client_address):
        pass  # clients hang up here on purpose


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, content = self.server, self.server.content
        server.requests.append(dict(self.headers))
        how = server.plan.pop(0) if server.plan else "well"
        if isinstance(how, int):
            self.send_response(how)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        wants = self.headers.get("Range")
        if wants and how != "ignore range" and self.headers.get("If-Range") == server.etag:
            start = int(wants.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        announced = len(content) - start + {"says more": 100, "says less": -100}.get(how, 0)
        if how != "no length":
            self.send_header("Content-Length", str(announced))
        if how != "no tag":
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.type)
        self.end_headers()
        end = start + (len(content) - start) // 2 if how in ("break off", "stall") else len(content)
        self.wfile.write(content[start:end])
        server.sent += end - start
        if how == "stall":
            self.wfile.flush()
            time.sleep(1)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "PIECE_BYTES", 10_000)
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, **more):
    return finish(download.download(server.address, path, **more))


def left(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_a_file_comes_whole_with_progress_and_leaves_nothing_beside(server, tmp_path):
    path = tmp_path / "new" / "a.txt"
    steps = list(download.download(server.address, path, SHA256, len(CONTENT)))
    assert path.read_bytes() == CONTENT and left(path) == ["a.txt"]
    assert all(isinstance(step, StageProgress) and step.total_bytes == len(CONTENT) for step in steps)
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    assert steps[-1].done_bytes == len(CONTENT)


@pytest.mark.parametrize("trouble", ["break off", "stall", 500, 503, 429, "says more"])
def test_trouble_is_tried_again_and_what_has_come_is_not_fetched_twice(server, tmp_path, trouble):
    server.plan = [trouble, trouble]
    if trouble == "says more":
        server.plan = [trouble]
    path = tmp_path / "a.txt"
    assert get(server, path, sha256=SHA256).sha256 == SHA256
    assert path.read_bytes() == CONTENT and left(path) == ["a.txt"]
    assert server.sent <= len(CONTENT) + 2 * download.PIECE_BYTES  # the piece that was under way is lost
    assert len(server.requests) >= 2


def test_a_later_call_goes_on_where_an_earlier_one_stopped(server, tmp_path):
    path = tmp_path / "a.txt"
    server.plan = ["break off"] + [500] * 10
    with pytest.raises(DownloadError, match=r"the same command resumes it") as caught:
        get(server, path)
    assert "\n" not in str(caught.value) and "answers 500" in str(caught.value)
    assert not path.exists() and len(server.requests) < 8
    server.plan, server.sent = [], 0
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and server.sent <= len(CONTENT) // 2 + download.PIECE_BYTES
    assert "Range" in server.requests[-1]


def test_a_download_killed_in_the_middle_goes_on(server, tmp_path):
    path = tmp_path / "a.txt"
    program = """if True:
        import os, signal, sys, pathlib
        from tiny_gpt.data.sources import download
        download.PIECE_BYTES = 10_000
        for step in download.download(sys.argv[1], pathlib.Path(sys.argv[2])):
            if step.done_bytes > 200_000:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", program, server.address, str(path)])
    assert killed.returncode == -signal.SIGKILL and not path.exists()
    server.sent = 0
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and left(path) == ["a.txt"]
    assert server.sent < len(CONTENT)


def test_a_server_that_knows_no_ranges_or_has_another_file_starts_over(server, tmp_path):
    path = tmp_path / "a.txt"
    server.plan = ["break off", "ignore range"]
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    server.plan = ["break off", 404]
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "b.txt")
    server.content, server.etag = CONTENT[::-1], '"two"'
    get(server, tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_bytes() == CONTENT[::-1]
    server.plan = ["no tag", "no length"]
    get(server, tmp_path / "c.txt")
    get(server, tmp_path / "d.txt")
    assert (tmp_path / "d.txt").read_bytes() == CONTENT[::-1]


def test_a_part_longer_than_the_file_starts_over(server, tmp_path):
    part = tmp_path / "a.txt.part"
    part.write_bytes(b"x" * (len(CONTENT) + 5))
    about = {"address": server.address, "validator": server.etag}
    part.with_name("a.txt.part.json").write_text(json.dumps(about))
    get(server, tmp_path / "a.txt", sha256=SHA256)
    assert (tmp_path / "a.txt").read_bytes() == CONTENT


def test_wrong_bytes_are_refused_and_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        get(server, tmp_path / "a.txt", sha256=SHA256)
    assert left(tmp_path / "a.txt") == []
    with pytest.raises(DownloadError, match=r"offers 1,024,000 bytes, expected 5"):
        get(server, tmp_path / "a.txt", n_bytes=5)
    server.plan = ["says less"]
    get(server, tmp_path / "b.txt", n_bytes=None)  # the connection ends where it said it would
    assert len((tmp_path / "b.txt").read_bytes()) == len(CONTENT) - 100


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once(server, tmp_path, code):
    server.plan = [code] * 5
    with pytest.raises(DownloadError, match=rf"answers {code}"):
        get(server, tmp_path / "a.txt")
    assert len(server.requests) == 1


def test_no_network_is_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refuses connections") as caught:
        get(server, tmp_path / "a.txt")
    assert "\n" not in str(caught.value) and left(tmp_path / "a.txt") == []
    with pytest.raises(DownloadError, match="is not a valid URL"):
        finish(download.download("http://", tmp_path / "a.txt"))


def test_a_full_disk_is_told(server, tmp_path, fill_disk):
    fill_disk(download, 50_000)
    with pytest.raises(OutOfResourcesError, match="no space left"):
        get(server, tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()


def test_two_at_once_do_not_disturb_one_another(server, tmp_path):
    path = tmp_path / "a.txt"
    first = download.download(server.address, path, SHA256)
    next(first)
    (tmp_path / "a.txt.lock").write_text(str(os.getppid()))  # a process that lives
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    finish(first)
    assert path.read_bytes() == CONTENT and left(path) == ["a.txt"]


def test_an_address_is_kept_and_a_web_page_gets_its_suffix(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    paths = [finish(fetch_url(server.address)) for _ in range(2)]
    assert paths[0] == paths[1] and paths[0].read_bytes() == CONTENT and len(server.requests) == 1
    server.type = "text/html; charset=utf-8"
    pages = [finish(fetch_url(server.address.replace("text.txt", "page/"))) for _ in range(2)]
    assert pages[0] == pages[1] and pages[0].name == "page.html" and len(server.requests) == 2
    assert finish(resolve([server.address])).files[0].path == paths[0]


def test_a_password_in_an_address_is_not_shown():
    assert download.without_password("https://me:secret@host/a") == "https://host/a"


@pytest.fixture
def known(server, tmp_path, monkeypatch):
    """A known text at the server, without a stated hash."""
    monkeypatch.setenv("TINY_GPT_CACHE", str(tmp_path))
    remote = RemoteFile("mine.txt", ("http://127.0.0.1:9/gone", server.address), None, None)
    monkeypatch.setitem(DATASETS, "mine", DatasetInfo("about", "licence", "1 MB", (remote,)))
    return tmp_path / "downloads" / "mine.txt"


def test_a_known_text_is_fetched_once_from_the_first_address_that_has_it(server, known):
    for _ in range(2):
        assert finish(fetch_dataset("mine")).train[0].path.read_bytes() == CONTENT
    assert len(server.requests) == 1 and "on this machine" in next(line for line in dataset_lines() if "mine" in line)


def test_a_known_text_that_was_changed_is_refused(server, known):
    finish(fetch_dataset("mine"))
    known.write_bytes(b"other")
    with pytest.raises(BadInputError, match=rf"mine\.txt is not mine.*expected {SHA256}; delete it"):
        finish(fetch_dataset("mine"))


def test_a_file_put_there_by_hand_is_taken_by_its_hash(server, known, monkeypatch):
    remote = RemoteFile("mine.txt", (server.address,), len(CONTENT), SHA256)
    monkeypatch.setitem(DATASETS, "mine", DatasetInfo("about", "licence", "1 MB", (remote,)))
    known.parent.mkdir(parents=True)
    known.write_bytes(CONTENT)
    for _ in range(2):
        assert finish(fetch_dataset("mine")).train[0].path == known
    known.write_bytes(CONTENT[::-1])
    with pytest.raises(BadInputError, match="delete it"):
        finish(fetch_dataset("mine"))
    assert server.requests == []


def test_without_a_network_a_known_text_says_what_there_is(server, known):
    server.shutdown()
    server.server_close()
    with pytest.raises(BadInputError, match=r"available without a network: python-docs") as caught:
        finish(fetch_dataset("mine"))
    assert "\n" not in str(caught.value)
    sources = finish(resolve(["mine|python-docs"]))
    assert sources.specs == ["python-docs"] and sources.files[0].path.name.startswith("python-docs")


def test_every_known_text_says_where_it_is_and_whose():
    for name, text in DATASETS.items():
        assert text.description and text.license and text.text_size
        for remote in text.files:
            assert all(address.startswith("https://") for address in remote.urls)
            assert remote.sha256 is None or len(remote.sha256) == 64
        assert any(line.startswith(name) for line in dataset_lines())
    assert fetch.downloads_folder().name == "downloads"
    assert all(len(line) <= 110 for line in dataset_lines())


def test_the_hub_gives_the_training_files(tmp_path, monkeypatch):
    import huggingface_hub

    for name in ("data/train-0.parquet", "data/test-0.parquet", "README.md", "data/train-1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(tmp_path))
    files = finish(resolve(["hf:owner/name"])).files
    assert [file.path.name for file in files] == ["train-0.parquet", "train-1.parquet"]
    assert asked[0][0] == ("owner/name",) and asked[0][1]["repo_type"] == "dataset"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BadInputError, match="pip install huggingface_hub"):
        finish(resolve(["hf:owner/name"]))
