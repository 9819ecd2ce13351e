"""`tiny-gpt watch`: what it prints, whom it answers, and when it ends beside a training."""

import io
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import segno

from tests.view.support import plant
from tiny_gpt.cli import watch
from tiny_gpt.web import browser, server

pytestmark = pytest.mark.skipif(os.name == "nt", reason="tested with the clocks and processes of POSIX")


@pytest.fixture
def watching(monkeypatch, tmp_path):
    """`watching(*flags)`: the command in a thread, once it serves; stopped at the end of the test."""
    servers, threads = [], []
    ready = threading.Event()

    class Recorded(server.WebServer):
        def run(self, on_ready):
            servers.append(self)
            super().run(lambda: (on_ready(), ready.set()))

    monkeypatch.setattr(server, "WebServer", Recorded)
    monkeypatch.setattr(browser, "open_page", lambda url: print(f"opened {url}"))
    folder = plant(tmp_path / "night", state="training", until=0.5)

    def start(*flags):
        threads.append(threading.Thread(target=watch.watch_run, args=([str(folder), *flags],), daemon=True))
        threads[-1].start()
        assert ready.wait(30)
        return threads[-1]

    yield start
    for each in servers:
        each.stop()
    for each in threads:
        each.join(30)
        assert not each.is_alive()


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        refused.close()
        return refused.code


def test_the_page_opens_in_the_browser(watching, capsys):
    watching()
    out = capsys.readouterr().out
    url = re.search(r"Watch night: (http://127\.0\.0\.1:\d+/)\n", out)[1]
    assert f"opened {url}" in out and "Ctrl+C ends the page, not a training." in out and status_of(url) == 200


def test_a_shared_page_has_a_link_with_a_key_and_its_qr_code(watching, capsys, monkeypatch):
    monkeypatch.setattr(watch, "_network_address", lambda: "127.0.0.1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    watching("--share", "--no-browser")
    out = capsys.readouterr().out
    link = re.search(r"On other devices in this network: (\S+)", out)[1]
    url, key = link.split("?key=")
    assert len(key) >= 24 and status_of(url) == 401 and status_of(f"{url}?key={key[:-1]}x") == 401
    with urllib.request.build_opener(urllib.request.HTTPCookieProcessor()).open(link, timeout=20) as page:
        assert "Learning normally." in page.read().decode() and key not in page.url and "opened" not in out
    code = io.StringIO()
    segno.make(link, error="l").terminal(code, compact=True)
    assert code.getvalue() in out


def test_beside_a_training_it_stays_until_after_its_end(watching, monkeypatch):
    monkeypatch.setattr(watch, "LINGER_S", 0.0)
    monkeypatch.setattr(watch, "_POLL_S", 0.02)
    monkeypatch.setattr(watch, "_detach_output", lambda: None)
    nice = []
    monkeypatch.setattr(os, "nice", nice.append)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as training:
        monkeypatch.setenv(watch.TRAINING_VARIABLE, str(training.pid))
        thread = watching("--no-browser")
        time.sleep(0.2)
        assert thread.is_alive() and nice == [watch.NICENESS]
        training.communicate(b"\n")
    thread.join(30)
    assert not thread.is_alive()
