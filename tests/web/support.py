"""What tests of web servers share: one that runs in a thread of the test, and bytes sent to it as they are."""

import contextlib
import socket
import threading

from tiny_gpt.config import WebConfig
from tiny_gpt.web.access import Access, access_for
from tiny_gpt.web.listener import listen, url_of
from tiny_gpt.web.server import WebServer

LOOPBACK = Access(frozenset({"localhost"}))


def access(**settings):
    return access_for(WebConfig(**settings), environment={})


@contextlib.contextmanager
def serving(app, **settings):
    """Yields the URL of `app`, served in a thread; stops it at the end, which takes no longer than its grace."""
    listener = listen("127.0.0.1", 0, 18000)
    server, ready = WebServer(app, listener, **settings), threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,), name="server")
    thread.start()
    assert ready.wait(10)
    try:
        yield url_of(listener)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def send_raw(url, data, timeout=5.0):
    """The bytes that a server answers to `data` before it closes the connection or is silent for `timeout` seconds."""
    host, port = url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=timeout) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        while piece := connection.recv(1 << 16):
            received += piece
    return received
