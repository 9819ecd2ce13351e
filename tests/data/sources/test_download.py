"""Downloads from a server that stalls, breaks off and lies: complete and verified, or one clear line and no file."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.data.sources.conftest import CONTENT, SHA256
from tiny_gpt.data.progress import StageProgress, finish
from tiny_gpt.data.sources import download
from tiny_gpt.data.sources.download import DownloadError
from tiny_gpt.errors import OutOfResourcesError


def get(server, path, **options):
    return finish(download.download(server.url, path, **options))


def files_beside(path):
    return sorted(file.name for file in path.parent.iterdir())


def test_file_arrives_with_progress_and_nothing_beside_it(server, tmp_path):
    path = tmp_path / "new" / "a.txt"
    events = list(download.download(server.url, path, SHA256, len(CONTENT)))
    assert path.read_bytes() == CONTENT and files_beside(path) == ["a.txt"]
    assert all(isinstance(event, StageProgress) and event.total_bytes == len(CONTENT) for event in events)
    assert [event.done_bytes for event in events] == sorted(event.done_bytes for event in events)
    assert events[-1].done_bytes == len(CONTENT)


@pytest.mark.parametrize("fault", ["break off", "stall", 500, 503, 429, "announce more"])
def test_temporary_fault_is_retried_without_fetching_twice(server, tmp_path, fault):
    server.plan = [fault] if fault == "announce more" else [fault, fault]
    path = tmp_path / "a.txt"
    assert get(server, path, sha256=SHA256).sha256 == SHA256
    assert path.read_bytes() == CONTENT and files_beside(path) == ["a.txt"]
    # The piece in transit is lost. A server that announced too much has no more when asked for the rest: all anew.
    n_again = len(CONTENT) if fault == "announce more" else 2 * download.PIECE_BYTES
    assert server.sent <= len(CONTENT) + n_again
    assert len(server.requests) >= 2


def test_later_call_resumes_an_interrupted_download(server, tmp_path):
    path = tmp_path / "a.txt"
    server.plan = ["break off"] + [500] * 10
    with pytest.raises(DownloadError, match="resumes") as error:
        get(server, path)
    assert error.value.code == "download-failed" and "500" in str(error.value) and "\n" not in str(error.value)
    assert not path.exists() and len(server.requests) < 8
    server.plan, server.sent = [], 0
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and server.sent <= len(CONTENT) // 2 + download.PIECE_BYTES
    assert "Range" in server.requests[-1]


def test_killed_download_is_resumed(server, tmp_path):
    path = tmp_path / "a.txt"
    program = """if True:
        import os, signal, sys, pathlib
        from tiny_gpt.data.sources import download
        download.PIECE_BYTES = 10_000
        for event in download.download(sys.argv[1], pathlib.Path(sys.argv[2])):
            if event.done_bytes > 200_000:
                os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", program, server.url, str(path)])
    assert killed.returncode == -signal.SIGKILL and not path.exists()
    server.sent = 0
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT and files_beside(path) == ["a.txt"]
    assert server.sent < len(CONTENT)


def test_server_without_ranges_starts_over(server, tmp_path):
    server.plan = ["break off", "ignore range"]
    get(server, tmp_path / "a.txt", sha256=SHA256)
    assert (tmp_path / "a.txt").read_bytes() == CONTENT


def test_changed_file_starts_over(server, tmp_path):
    server.plan = ["break off", 404]
    with pytest.raises(DownloadError, match="404"):
        get(server, tmp_path / "a.txt")
    server.content, server.etag = CONTENT[::-1], '"two"'
    get(server, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("fault", ["no tag", "no length"])
def test_missing_headers_are_no_fault(server, tmp_path, fault):
    server.plan = [fault]
    get(server, tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_over(server, tmp_path):
    part = tmp_path / "a.txt.part"
    part.write_bytes(b"x" * (len(CONTENT) + 5))
    info = {"address": server.url, "validator": server.etag}
    part.with_name("a.txt.part.json").write_text(json.dumps(info))
    get(server, tmp_path / "a.txt", sha256=SHA256)
    assert (tmp_path / "a.txt").read_bytes() == CONTENT


def test_wrong_bytes_are_not_kept(server, tmp_path):
    server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match=SHA256) as error:
        get(server, tmp_path / "a.txt", sha256=SHA256)
    assert error.value.code == "download-hash-differs" and files_beside(tmp_path / "a.txt") == []
    with pytest.raises(DownloadError, match=r"1,024,000 bytes, expected 5") as error:
        get(server, tmp_path / "a.txt", n_bytes=5)
    assert error.value.code == "download-size-differs"


def test_announced_length_is_the_length(server, tmp_path):
    server.plan = ["announce less"]
    get(server, tmp_path / "a.txt")
    assert len((tmp_path / "a.txt").read_bytes()) == len(CONTENT) - 100


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusal_is_not_retried(server, tmp_path, status):
    server.plan = [status] * 5
    with pytest.raises(DownloadError, match=str(status)) as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "download-refused" and len(server.requests) == 1


def test_unreachable_server_is_one_line(server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refuses connections") as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "download-failed" and "\n" not in str(error.value)
    assert files_beside(tmp_path / "a.txt") == []


def test_invalid_url_is_refused(tmp_path):
    with pytest.raises(DownloadError) as error:
        finish(download.download("http://", tmp_path / "a.txt"))
    assert error.value.code == "url-invalid"


def test_full_disk_leaves_no_file(server, tmp_path, fill_disk):
    fill_disk(download, 50_000)
    with pytest.raises(OutOfResourcesError, match="TINY_GPT_CACHE"):
        get(server, tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()


def test_two_processes_do_not_disturb_each_other(server, tmp_path):
    path = tmp_path / "a.txt"
    first = download.download(server.url, path, SHA256)
    next(first)
    (tmp_path / "a.txt.lock").write_text(str(os.getppid()))  # a process that is alive
    get(server, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    finish(first)
    assert path.read_bytes() == CONTENT and files_beside(path) == ["a.txt"]


def test_password_in_a_url_is_not_shown():
    assert download.without_password("https://me:secret@host/a") == "https://host/a"


def test_slow_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SLOW_WINDOW_S", 0.1)
    server.plan = ["drip"] * 20
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "download-failed" and "1,000 bytes a second" in str(error.value)
    assert len(server.requests) == download.SLOW_WINDOWS


def test_endless_body_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_UNANNOUNCED_BYTES", 3 * len(CONTENT))
    server.plan = ["endless"]
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "download-endless" and files_beside(tmp_path / "a.txt") == []


def test_file_larger_than_the_disk_is_refused_beforehand(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SPARE_DISK_BYTES", 10)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutOfResourcesError) as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "no-space-for-download"


def test_proxy_that_needs_a_package_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "socks", None)
    monkeypatch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(DownloadError) as error:
        get(server, tmp_path / "a.txt")
    assert error.value.code == "proxy-needs-socks" and "pip install pysocks" in str(error.value)
