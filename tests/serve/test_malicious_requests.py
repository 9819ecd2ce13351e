"""What no client should send: each is answered or dropped within limits, and the server works as before."""

import contextlib
import json
import socket
import time

import psutil
import pytest
import requests

from tests.serve.support import serve
from tests.web.support import access, send_raw
from tiny_gpt.web.connection import TimedConnection

KEY = "sesame-open-12"
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    with serve("gpt2", access=access(api_key=KEY)) as found:
        yield found


@pytest.fixture(autouse=True)
def server_works_afterwards(server):
    yield
    settings = dict(prompt="a", max_tokens=3, seed=1)
    answer = requests.post(server.api + "/completions", json=settings, headers=headers())
    assert answer.json()["choices"][0]["text"] == server.alone("a", 1, max_tokens=3)


def headers(**more):
    return {"Authorization": f"Bearer {KEY}"} | more


def post(server, body, path=COMPLETIONS, **more):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(server.url + path, data=data, headers=headers(**more), timeout=20)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{",
        b'{"prompt": "a",}',
        b"{'prompt': 'a'}",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "__proto__": {"admin": true}}',
        b'{"prompt": "\\ud800", "\\udfff": 1}',
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_bodies_that_are_no_request_get_400(server, body):
    response = post(server, body)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", 10**9),
        ("max_tokens", -1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", "1; DROP TABLE"),
        ("max_tokens", 10**400),
        ("temperature", -0.1),
        ("temperature", 1e308),
        ("temperature", "hot"),
        ("temperature", []),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("top_k", 2**64),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -1e9),
        ("logit_bias", {"99999999": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 1e9}),
        ("logit_bias", [1]),
        ("stop", ""),
        ("stop", ["a"] * 1000),
        ("stop", "a" * 100_000),
        ("stop", [1]),
        ("seed", -1),
        ("seed", 2**63),
        ("n", 0),
        ("n", 10**6),
        ("best_of", 0),
        ("best_of", 10**6),
        ("logprobs", -1),
        ("logprobs", 10**6),
        ("echo", "yes"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("suffix", "end"),
        ("prompt", []),
        ("prompt", [[]]),
        ("prompt", [-1]),
        ("prompt", [256]),
        ("prompt", [2**70]),
        ("prompt", [1.5]),
        ("prompt", ["a"] * 1000),
        ("prompt", {"a": 1}),
        ("temprature", 1),
        ("../../etc/passwd", 1),
        ("<script>alert(1)</script>", 1),
    ],
)
def test_impossible_values_get_400_that_names_them(server, param, value):
    response = post(server, {"prompt": "a", "max_tokens": 2} | {param: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param), response.text
    assert response.headers["Content-Type"] == "application/json" and "nosniff" in str(response.headers)


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "hello",
        [{}],
        [{"role": "root", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}],
        [{"role": "user", "content": "a", "tool_calls": [1]}],
    ],
)
def test_impossible_messages_get_400(server, messages):
    response = post(server, {"messages": messages, "max_tokens": 2}, CHAT)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith("messages")


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        (COMPLETIONS, {"Authorization": "Bearer wrong-key-12"}, 401),
        (COMPLETIONS, {"Authorization": ""}, 401),
        (COMPLETIONS, {"Host": "evil.example"}, 403),
        (COMPLETIONS, {"Origin": "https://evil.example"}, 403),
        (COMPLETIONS, {"Origin": "null"}, 403),
        (COMPLETIONS, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("/v1/../../etc/passwd", {}, 404),
        ("/v1/models/..%2f..%2fetc%2fpasswd", {}, 404),
        ("/v1/models/%00", {}, 404),
        ("/" + "a" * 10_000, {}, 404),
        ("/health", {}, 405),
    ],
)
def test_requests_to_the_wrong_place_are_refused(server, path, more, status):
    assert post(server, {"prompt": "a", "max_tokens": 1}, path, **more).status_code in (status, 405)
    assert requests.get(server.url + "/v1/completions", headers=headers()).status_code == 405


def test_a_body_of_100_mb_is_refused_without_being_read(server):
    before = psutil.Process().memory_info().rss
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n".encode()
    announced = head + b"Content-Length: 104857600\r\n\r\n"
    assert b" 413 " in send_raw(server.url, announced)[:20]
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):  # closed while we still send
            for _ in range(100):
                connection.sendall(chunk)
            raise AssertionError("it read 100 MB")
    assert psutil.Process().memory_info().rss - before < 50e6


def test_html_in_a_prompt_comes_back_as_data_only(server):
    response = post(server, {"prompt": "<script>alert(1)</script>", "echo": True, "max_tokens": 1})
    assert response.json()["choices"][0]["text"].startswith("<script>")
    assert response.headers["Content-Type"] == "application/json"
    assert "script-src 'self'" in response.headers["Content-Security-Policy"]


def test_a_hundred_silent_and_half_closed_connections_cost_nothing(server, monkeypatch):
    monkeypatch.setattr(TimedConnection, "request_timeout_s", 0.5)
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for number in range(100):
            connection = stack.enter_context(socket.create_connection((host, int(port))))
            connection.sendall([b"", b"POST ", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"][number % 3])
            if number % 2:
                connection.shutdown(socket.SHUT_WR)
        assert requests.get(server.url + "/health").status_code == 200
        time.sleep(1.0)
        connection.settimeout(5)
        assert connection.recv(1) == b""


def test_requests_that_are_cut_off_anywhere_leave_nothing_behind(server):
    body = json.dumps({"prompt": "a", "max_tokens": 5000, "stream": True}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    host, port = server.url.removeprefix("http://").split(":")
    for end in range(10, len(data) + 1, 23):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(data[:end])
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(data)
        connection.recv(100)
    scheduler, deadline = server.models["gpt2"].scheduler, time.monotonic() + 5
    while (scheduler.n_running or scheduler.n_waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert scheduler.n_running == scheduler.n_waiting == 0
