"""The live page's server: what it answers to whom."""

import json
import os
import time
import urllib.error
import urllib.request

import pytest

from tests.view.support import plant, rows, write_rows, write_sample
from tests.web.support import LOOPBACK, access, send_raw, serving
from tiny_gpt.view.live import LiveRun, live_app

KEY = "a-key-that-is-long"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret.txt").write_text("secret words")
    return plant(tmp_path / "night", state="training", until=0.5, samples={100: "The"})


@pytest.fixture
def url(folder):
    with serving(live_app(folder, LOOPBACK)) as address:
        yield address


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode(), refused.headers


def test_page_and_files(url):
    status, page, headers = get(url)
    assert status == 200 and "Learning normally." in page and "unsafe" not in headers["Content-Security-Policy"]
    assert "<style" not in page and "style=" not in page and "<script src" in page
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        status, content, headers = get(f"{url}/{name}")
        assert status == 200 and content and headers["Content-Type"].startswith(kind)


def test_only_what_changed_is_sent(folder):
    run = LiveRun(folder)
    first = run.changes("time", "wide", "", {})
    assert {"verdict", "loss-time-wide", "strips-time-wide", "words", "sample-100", "plan"} <= first["parts"].keys()
    have = {name: part["hash"] for name, part in first["parts"].items()}
    again = run.changes("time", "wide", first["version"], have)
    assert again["parts"] == {} and again["version"] == first["version"]
    write_sample(folder, 200, "The cat")
    second = run.changes("time", "wide", first["version"], have)
    assert "sample-200" in second["parts"] and not {"sample-100", "loss-time-wide", "events"} & second["parts"].keys()
    write_rows(folder, list(rows(n=41))[40:], "a")
    third = run.changes("time", "wide", second["version"], have | {"sample-200": second["parts"]["sample-200"]["hash"]})
    assert {"loss-time-wide", "words"} <= third["parts"].keys() and "sample-200" not in third["parts"]
    assert set(run.changes("tokens", "narrow", third["version"], have)["parts"]) >= {"loss-tokens-narrow"}


def test_a_run_that_does_not_exist_yet_appears(tmp_path):
    run = LiveRun(tmp_path / "night")
    page = run.first_page()
    assert "Preparing" in page and "The plan comes when" in page and "No sample yet." in page
    plant(tmp_path / "night", state="training", until=0.5)
    assert "Learning normally." in run.changes("time", "wide", "", {})["parts"]["verdict"]["html"]


@pytest.mark.skipif(os.name == "nt", reason="Windows moves no folder with open files")
def test_a_run_that_is_moved_is_followed(folder, tmp_path):
    run = LiveRun(folder)
    run.first_page()
    folder.rename(tmp_path / "kept")
    plant(folder, state="training", until=0.5, n=3)  # another run takes the name
    assert "20 steps" not in run.first_page() and "<strong>kept</strong>" in run.first_page()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/..\\secret.txt",
        "/page.css/../../secret.txt",
        "/static/page.css",
        "/metrics.jsonl",
        "/train.log",
        "/tiny_gpt_best.pt",
        "//etc/passwd",
        "/page.css%00.txt",
        "/state/../../secret.txt",
    ],
)
def test_no_other_file_is_served(url, path):
    answer = send_raw(url, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404") and b"secret words" not in answer and b"root:" not in answer


@pytest.mark.parametrize(
    "query",
    ["axis=<script>", "axis=../../secret", "size=huge", "axis=time&size=", "axis=time&axis=none"],
)
def test_unknown_charts_are_refused(url, query):
    status, content, _ = get(f"{url}/state?{query}")
    assert status == 400 and json.loads(content)["error"]["code"] == "unknown-chart"


@pytest.mark.parametrize("have", ["", ":", ",,,", "a:b:c,d", "verdict:", "%00:%ff", "x" * 9000])
def test_odd_knowledge_of_a_page_is_no_problem(url, have):
    status, content, _ = get(f"{url}/state?have={have}")
    assert status == 200 and "verdict" in json.loads(content)["parts"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8760"},
        {"Host": "localhost.evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_other_pages_and_names_are_refused(url, headers):
    for path in ("/", "/state", "/page.js"):
        status, content, _ = get(url + path, **headers)
        assert status == 403 and "night" not in content


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_changed(url, folder, method):
    before = {path: path.read_bytes() for path in folder.rglob("*.json*")}
    request = urllib.request.Request(f"{url}/state", data=b"{}", method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    refused.value.close()
    assert refused.value.code == 405 and before == {path: path.read_bytes() for path in folder.rglob("*.json*")}


def test_a_shared_page_answers_nothing_without_its_key(folder):
    with serving(live_app(folder, access(host="0.0.0.0", api_key=KEY))) as url:
        for path in ("/", "/state", "/page.js", "/page.css", "/?key=wrong-key-of-length", "/?key="):
            status, content, _ = get(url + path)
            assert status == 401 and "night" not in content
        cookies = urllib.request.HTTPCookieProcessor()
        with urllib.request.build_opener(cookies).open(f"{url}/?key={KEY}", timeout=20) as answer:
            assert "Learning normally." in answer.read().decode() and KEY not in answer.url


def test_many_rows_stay_quick(tmp_path):
    """Figures are in docs/log, by benchmarks/watching.py; the limits here leave room for other machines."""
    folder = plant(tmp_path / "night", state="training", until=0.5, n=20_000, step=1)
    run = LiveRun(folder)
    start = time.process_time()
    run.first_page()
    assert time.process_time() - start < 2.0
    first = run.changes("time", "wide", "", {})
    have = {name: part["hash"] for name, part in first["parts"].items()}
    write_rows(folder, list(rows(n=2, step=60_000)), "a")
    start = time.process_time()
    changed = run.changes("time", "wide", first["version"], have)
    assert time.process_time() - start < 0.15
    assert sum(len(part["html"]) for part in changed["parts"].values()) < 120_000
