"""A server as clients meet it: headers, keys, limits of size and time, ports, and how it stops."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

from tests.web.support import LOOPBACK, access, send_raw, serving
from tiny_gpt.errors import UsageError
from tiny_gpt.web.app import SECURITY_HEADERS, web_app
from tiny_gpt.web.browser import has_screen
from tiny_gpt.web.connection import TimedConnection
from tiny_gpt.web.errors import RefusedError
from tiny_gpt.web.listener import listen, url_of

KEY = "sesame-open-12"


async def hello(request):
    return PlainTextResponse(request.query_params.get("name", "hello"))


async def echo(request):
    return JSONResponse({"n": len(await request.body())})


async def refuse(_):
    raise RefusedError(429, "later", "busy", headers={"Retry-After": "3"})


async def fail(_):
    raise ValueError("a secret of the program")


async def slow(_):
    async def pieces():
        for number in range(10):
            yield f"{number}\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def endless(_):
    async def pieces():
        while True:
            yield "x" * 65536
            await asyncio.sleep(0.001)

    return StreamingResponse(pieces())


ROUTES = [
    Route("/", hello),
    Route("/health", hello),
    Route("/echo", echo, methods=["POST"]),
    Route("/refuse", refuse),
    Route("/fail", fail),
    Route("/slow", slow),
    Route("/endless", endless),
]


@pytest.fixture(scope="module")
def url():
    with serving(web_app(ROUTES, LOOPBACK, max_body_bytes=1000)) as found:
        yield found


def test_every_answer_has_the_security_headers(url):
    for path in ("/", "/nothing", "/refuse", "/fail", "/slow"):
        headers = requests.get(url + path).headers
        assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS, path
    refused = requests.get(url, headers={"Host": "evil.example"})
    assert refused.status_code == 403 and refused.headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nothing", 404, "not-found"),
        ("/refuse", 429, "busy"),
        ("/fail", 500, "unexpected"),
        ("/../../etc/passwd", 404, "not-found"),
        ("/%2e%2e/%2e%2e/etc/passwd", 404, "not-found"),
    ],
)
def test_errors_are_json_and_tell_no_secrets(url, path, status, code):
    response = requests.get(url + path)
    assert response.status_code == status and response.json()["error"]["code"] == code
    assert "secret" not in response.text and "Traceback" not in response.text
    assert (response.headers.get("Retry-After") == "3") == (status == 429)


def test_bodies_are_limited_with_and_without_a_stated_length(url):
    assert requests.post(url + "/echo", data=b"x" * 1000).json() == {"n": 1000}
    assert requests.post(url + "/echo", data=b"x" * 1001).status_code == 413
    chunked = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b" 413 " in send_raw(url, chunked + b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n").split(b"\r\n")[0]
    announced = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000000\r\n\r\n"
    assert b" 413 " in send_raw(url, announced).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTQ/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    ],
    ids=["tls", "no host", "version", "negative", "two lengths", "long header", "long path", "nul"],
)
def test_malformed_requests_get_400_and_the_server_stays_up(url, data):
    answer = send_raw(url, data).split(b"\r\n")[0]
    assert b" 400 " in answer or (answer == b"" and len(data) > 50_000)  # closed while the client still sends
    assert requests.get(url).text == "hello"


def test_slow_and_silent_requests_are_dropped(url, monkeypatch):
    monkeypatch.setattr(TimedConnection, "request_timeout_s", 0.2)
    for data in (b"", b"GET / HT", b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12"):
        start = time.monotonic()
        assert send_raw(url, data, timeout=5) == b""
        assert time.monotonic() - start < 3
    # An answer may take longer than the request had time to arrive.
    assert requests.get(url + "/slow").text.count("\n") == 10


def test_a_client_that_reads_nothing_is_dropped(url, monkeypatch):
    monkeypatch.setattr(TimedConnection, "stall_timeout_s", 0.2)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.0)
        connection.settimeout(5)
        n_bytes = 0
        while piece := connection.recv(1 << 20):
            n_bytes += len(piece)
            assert n_bytes < 50_000_000, "the stream does not end"


def test_a_key_is_asked_for_and_a_link_signs_in():
    with serving(web_app(ROUTES, access(api_key=KEY))) as url:
        assert requests.get(url).status_code == 401
        assert requests.get(url + "/health").status_code == 200
        assert requests.get(url, headers={"Authorization": f"Bearer {KEY}"}).text == "hello"
        with requests.Session() as browser:
            response = browser.get(url + "/", params={"name": "a b", "key": KEY})
            assert response.text == "a b" and response.url == url + "/?name=a+b"
            assert response.history[0].status_code == 303 and KEY not in str(browser.cookies)
            assert "HttpOnly" in response.history[0].headers["Set-Cookie"]
        elsewhere = requests.get(url + "//evil.example/", params={"key": KEY}, allow_redirects=False)
        assert elsewhere.headers["Location"] == "/evil.example/"
        assert requests.get(url, params={"key": "wrong-key-1"}).status_code == 401


def test_only_allowed_origins_get_cors_headers():
    origin = "https://write.example"
    with serving(web_app(ROUTES, access(api_key=KEY, allow_origin=(origin,)))) as url:
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        allowed = requests.options(url + "/echo", headers={"Origin": origin, **ask})
        assert allowed.status_code == 200 and allowed.headers["Access-Control-Allow-Origin"] == origin
        refused = requests.options(url + "/echo", headers={"Origin": "https://evil.example", **ask})
        assert refused.status_code == 403 and "Access-Control-Allow-Origin" not in refused.headers
        answer = requests.get(url, headers={"Origin": origin, "Authorization": f"Bearer {KEY}"})
        assert answer.headers["Access-Control-Allow-Origin"] == origin


def test_stopping_finishes_what_runs_and_accepts_nothing_new():
    received = []
    with serving(web_app(ROUTES, LOOPBACK)) as url:
        thread = threading.Thread(target=lambda: received.append(requests.get(url + "/slow").text))
        thread.start()
        time.sleep(0.15)
    thread.join(5)
    assert received == ["".join(f"{number}\n" for number in range(10))]
    with pytest.raises(requests.ConnectionError):
        requests.get(url)


def test_stopping_cuts_off_what_does_not_end():
    start = time.monotonic()
    with serving(web_app(ROUTES, LOOPBACK), grace_s=0.2) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)))
        connection.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100)
    connection.close()
    assert time.monotonic() - start < 5


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_program_with_success(number):
    program = """if True:
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route
        from tiny_gpt.config import WebConfig
        from tiny_gpt.web.access import access_for
        from tiny_gpt.web.app import web_app
        from tiny_gpt.web.listener import listen, url_of
        from tiny_gpt.web.server import WebServer
        listener = listen("127.0.0.1", 0, 18000)
        app = web_app([Route("/", lambda request: PlainTextResponse("hello"))], access_for(WebConfig()))
        WebServer(app, listener).run(lambda: print(url_of(listener), flush=True))
        print("stopped", flush=True)
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert requests.get(process.stdout.readline().strip()).text == "hello"
        os.kill(process.pid, number)
        assert process.stdout.read() == "stopped\n"
        assert process.wait(10) == 0


def test_ports_in_use_are_reported_or_skipped():
    with listen("127.0.0.1", 0, 18100) as first:
        port = first.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            listen("127.0.0.1", port, 18100)
        assert caught.value.code == "port-in-use" and f"--port {port}" in str(caught.value)
        with listen("127.0.0.1", 0, port) as second:
            assert second.getsockname()[1] > port
            assert url_of(second) == f"http://127.0.0.1:{second.getsockname()[1]}"
    with pytest.raises(UsageError) as caught:
        listen("no.such.host.invalid", 0, 18100)
    assert caught.value.code == "host-unknown"


def test_a_browser_is_opened_only_where_it_is_seen():
    assert has_screen({"DISPLAY": ":0"}, "linux") and has_screen({}, "darwin")
    assert not has_screen({}, "linux") and not has_screen({"DISPLAY": ":0", "SSH_CONNECTION": "1 2 3 4"}, "linux")


def test_the_error_body_has_openais_form():
    error = RefusedError(400, "n must be positive", "invalid-value", "n")
    assert json.loads(error.response().body) == {
        "error": {
            "message": "n must be positive",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid-value",
        }
    }
