"""Messages to addresses that answer, refuse, stall or are gone."""

import contextlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tiny_gpt.host import notify
from tiny_gpt.host.notify import Message, fault_of, host_of, post_to_all

MESSAGE = Message("my_book: training finished", "Best: 1.4 <bits> & more.", False, {"status": "finished", "step": 7})
ALARM = Message("my_book: training failed", "The loss became NaN.", True, {"status": "failed"})


class Server:
    """Answers each request with the next of `answers`, the last one again and again, and remembers the requests.

    An answer is a status code, "stall" (say nothing) or "drip" (a byte of the answer now and then).
    """

    def __init__(self):
        self.answers, self.requests = [200], []
        self.is_over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, json.loads(body), self.headers.get("Authorization")))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if answer == "stall":
                    outer.is_over.wait(30)
                elif answer == "drip":
                    with contextlib.suppress(OSError):
                        while not outer.is_over.wait(0.05):
                            self.wfile.write(b"H")
                else:
                    self.send_response(answer)
                    self.send_header("Location", f"http://127.0.0.1:{outer.port}/elsewhere")
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def address(self, path="/secret-path", form=""):
        return f"{form}http://127.0.0.1:{self.port}{path}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(notify, "CONNECT_S", 0.3)
    monkeypatch.setattr(notify, "READ_S", 0.3)
    monkeypatch.setattr(notify, "RETRY_S", (0.01, 0.01))
    with Server() as server:
        yield server


def test_a_webhook_gets_text_and_facts(server):
    assert post_to_all([server.address()], MESSAGE) == ["notified 127.0.0.1"]
    expected = {"title": MESSAGE.title, "text": MESSAGE.text, "status": "finished", "step": 7}
    assert server.requests == [("/secret-path", expected, None)]


@pytest.mark.parametrize(
    ("form", "path", "posted_to", "body"),
    [
        ("ntfy+", "/topic", "/", {"topic": "topic", "title": ALARM.title, "message": ALARM.text, "priority": 4}),
        ("ntfy+", "/a/topic?auth=x", "/a/?auth=x", {"topic": "topic", "title": ALARM.title}),
        ("slack+", "/services/T/B", "/services/T/B", {"text": f"{ALARM.title}\n{ALARM.text}"}),
        ("discord+", "/x", "/x", {"content": f"{ALARM.title}\n{ALARM.text}", "allowed_mentions": {"parse": []}}),
    ],
)
def test_services_get_their_form(server, form, path, posted_to, body):
    post_to_all([server.address(path, form)], ALARM)
    ((found_path, found, _),) = server.requests
    assert found_path == posted_to and found.items() >= body.items()


def test_slack_gets_no_markup_of_others(server):
    post_to_all([server.address(form="slack+")], MESSAGE)
    assert "&lt;bits&gt; &amp; more" in server.requests[0][1]["text"]


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("https://ntfy.sh/topic", "ntfy"),
        ("https://hooks.slack.com/services/T/B/x", "slack"),
        ("https://discord.com/api/webhooks/1/x", "discord"),
        ("https://discord.com/other", "webhook"),
        ("https://example.org/?u=https://ntfy.sh/topic", "webhook"),
        ("slack+https://mattermost.example.org/hooks/x", "slack"),
    ],
)
def test_services_are_recognized_by_their_host(address, form):
    assert fault_of(address) == "" and notify._split(address)[0] == form


def test_a_password_in_the_address_is_used(server):
    post_to_all([f"http://user:password@127.0.0.1:{server.port}/"], MESSAGE)
    assert server.requests[0][2] == "Basic dXNlcjpwYXNzd29yZA=="


@pytest.mark.parametrize(
    ("answers", "n_requests", "line"),
    [
        ([500, 503, 200], 3, "notified 127.0.0.1"),
        ([429, 200], 2, "notified 127.0.0.1"),
        (["stall", 200], 2, "notified 127.0.0.1"),
        ([500], 3, "could not notify 127.0.0.1: it answered 500"),
        ([404], 1, "could not notify 127.0.0.1: it answered 404"),
        ([302], 1, "could not notify 127.0.0.1: it answered 302"),
        (["stall"], 3, "could not notify 127.0.0.1: it did not answer in time"),
    ],
)
def test_only_what_may_pass_is_tried_again(server, answers, n_requests, line):
    server.answers = answers
    assert post_to_all([server.address()], MESSAGE) == [line]
    assert len(server.requests) == n_requests


def test_a_server_that_never_finishes_its_answer_costs_the_deadline(server):
    """And delays no other address."""
    server.answers = ["drip"]
    start = time.monotonic()
    with Server() as other:
        lines = post_to_all([server.address(), other.address()], MESSAGE, deadline_s=0.5)
        assert len(other.requests) == 1
    assert time.monotonic() - start < 3
    assert lines[0].startswith("could not notify 127.0.0.1: it did not answer") and lines[1] == "notified 127.0.0.1"


def test_nobody_listening_is_no_connection(server):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/secret-path"
    assert post_to_all([address], MESSAGE) == ["could not notify 127.0.0.1: no connection"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "secret",
        "secret.example.org/x",
        "ftp://secret.example.org",
        "file:///secret",
        "https://",
        "https://[secret",
        "https://secret.example.org:port/",
        "teams+https://secret.example.org",
        "https://ntfy.sh",
        "ntfy+https://secret.example.org/",
    ],
)
def test_impossible_addresses_are_explained_without_being_shown(address):
    assert fault_of(address) and "secret" not in fault_of(address)


def test_only_the_host_of_an_address_is_shown():
    assert host_of("https://user:secret@hooks.slack.com/services/secret?x=secret") == "hooks.slack.com"
