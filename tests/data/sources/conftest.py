"""A web server that misbehaves as planned, request by request."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tiny_gpt.data.sources import download

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `plan` lists what to do with the next requests: a status, or a fault of Handler."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.sent = [], [], 0
        self.content, self.etag, self.type = CONTENT, '"one"', "text/plain"
        self.url = f"http://127.0.0.1:{self.server_port}/folder/text.txt"

    def handle_error(self, request, client_address):
        pass  # clients hang up on purpose


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, content = self.server, self.server.content
        server.requests.append(dict(self.headers))
        fault = server.plan.pop(0) if server.plan else "none"
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        byte_range = self.headers.get("Range")
        if byte_range and fault != "ignore range" and self.headers.get("If-Range") == server.etag:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        announced = len(content) - start + {"announce more": 100, "announce less": -100}.get(fault, 0)
        if fault not in ("no length", "endless"):
            self.send_header("Content-Length", str(announced))
        if fault != "no tag":
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.type)
        self.end_headers()
        end = start + (len(content) - start) // 2 if fault in ("break off", "stall") else len(content)
        if fault == "drip":
            for byte in content[start : start + 200]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.01)
            return
        if fault == "endless":
            while True:
                self.wfile.write(content)
        self.wfile.write(content[start:end])
        server.sent += end - start
        if fault == "stall":
            self.wfile.flush()
            time.sleep(1)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    """A running Server, and downloads that do not wait long."""
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "PIECE_BYTES", 10_000)
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
