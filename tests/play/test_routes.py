"""The playground's requests, sent as a page sends them and as no page would."""

import http.client
import json
import time
import urllib.error
import urllib.request

import pytest

from tests.play.support import app_for, post
from tests.run.support import FRENCH
from tests.web.support import serving
from tiny_gpt.play.requests import MAX_TEXT, MAX_TOKENS
from tiny_gpt.play.routes import MAX_STREAMS


@pytest.fixture(scope="module")
def url(snapshots):
    with serving(app_for(snapshots)) as address:
        yield address


def get(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.headers, answer.read()


def test_the_page_and_its_scripts_are_served_under_a_strict_policy(url):
    headers, page = get(url + "/")
    assert b"<script" in page and b"onclick" not in page and b"style=" not in page
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    names = [name for name in page.decode().split('"') if name.startswith("/play/static/")]
    assert len(names) >= 4 and all(get(url + name)[1] for name in names)


def test_the_model_is_described(url, snapshots):
    about = json.loads(get(url + "/play/model")[1])
    assert about["n_layer"] == 2 and about["has_training_text"] and len(about["snapshots"]) == len(snapshots.list())
    tokens = json.loads(get(url + "/play/vocabulary")[1])
    assert [token.encode("latin-1") for token in tokens] == [bytes([byte]) for byte in range(256)]


def test_alternatives_come_in_one_stream(url):
    status, events = post(url + "/play/continue", {"text": "l'", "n": 3, "max_tokens": 5, "seed": 1})
    assert status == 200 and events[-1] == {"done": True}
    assert sorted(event["text"] for event in events[:-1]) == [0] * 5 + [1] * 5 + [2] * 5


def test_streams_are_limited_and_a_client_that_leaves_frees_its_place(url):
    host = url.removeprefix("http://")
    long = json.dumps({"text": "x", "max_tokens": 2000, "seed": 1})
    connections = [http.client.HTTPConnection(host, timeout=10) for _ in range(MAX_STREAMS + 1)]
    answers = []
    for connection in connections:
        connection.request("POST", "/play/continue", long, {"Content-Type": "application/json"})
        answers.append(connection.getresponse())
    assert [answer.status for answer in answers] == [200] * MAX_STREAMS + [429]
    for closable in (*answers, *connections):
        closable.close()
    for _ in range(100):
        if post(url + "/play/continue", {"text": "x", "max_tokens": 1, "seed": 1})[0] == 200:
            return
        time.sleep(0.05)
    raise AssertionError("no place became free")


def test_ids_continue_within_a_character(url):
    half = {"ids": ["é".encode()[0]], "max_tokens": 1, "temperature": 0, "seed": 1}
    status, events = post(url + "/play/continue", half)
    assert status == 200 and len(events) == 2


def test_copied_passages_are_found_with_their_places(url):
    line = FRENCH.splitlines()[0]
    status, [scored] = post(url + "/play/score", {"text": f"😀 new. {line}", "whole": True})
    [span] = scored["copied"]
    assert status == 200 and span["line"] >= 1
    utf16 = f"😀 new. {line}".encode("utf-16-le")[2 * span["start"] : 2 * span["end"]].decode("utf-16-le")
    assert utf16.strip() == line


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("continue", b"{", "request-not-json"),
        ("continue", b"[1]", "request-not-an-object"),
        ("continue", {}, "text-not-text"),
        ("continue", {"text": 5}, "text-not-text"),
        ("score", {"text": "x" * (MAX_TEXT + 1)}, "text-too-long"),
        ("continue", {"text": "x", "temperature": -1}, "temperature-out-of-range"),
        ("continue", b'{"text": "x", "temperature": NaN}', "setting-not-a-number"),
        ("continue", {"text": "x", "top_k": 1.5}, "setting-not-a-number"),
        ("continue", {"text": "x", "top_p": True}, "setting-not-a-number"),
        ("continue", {"text": "x", "max_tokens": MAX_TOKENS + 1}, "too-many-tokens"),
        ("continue", {"text": "x", "n": 99}, "number-out-of-range"),
        ("continue", {"text": "x", "seed": -1}, "number-out-of-range"),
        ("continue", {"text": "x", "snapshot": "../../etc"}, "snapshot-unknown"),
        ("continue", {"text": "x", "snapshot": 5}, "snapshot-not-text"),
        ("next", {"ids": [256]}, "id-unknown"),
        ("next", {"ids": [True]}, "id-unknown"),
        ("next", {"ids": "x"}, "ids-not-a-list"),
        ("inside", {"ids": []}, "no-tokens"),
        ("inside", {"ids": [1], "layer": 9}, "number-out-of-range"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(url, path, body, code):
    status, [answer] = post(f"{url}/play/{path}", body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert len(answer["error"]["message"]) > 10


@pytest.mark.parametrize(
    "path", ["/play/static/../routes.py", "/play/static/%2e%2e/routes.py", "/play/static/..%2froutes.py"]
)
def test_nothing_else_on_the_disk_is_served(url, path):
    request = urllib.request.Request(url + path)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == 404
