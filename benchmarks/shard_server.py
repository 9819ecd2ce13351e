"""A web server for the shards of a corpus that sends no more than a number of bytes a second, over all connections."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 14


class ShardServer(ThreadingHTTPServer):
    """Serves the files of `folder`. `statuses` are those of the next answers, such as 503, instead of a file."""

    daemon_threads = True

    def __init__(self, folder: Path, bytes_per_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.bytes_per_s = folder, bytes_per_s
        self.statuses: list[int] = []
        self.requested: list[str] = []
        """Names of the files that were asked for."""
        self._lock, self._free_at = threading.Lock(), 0.0

    @property
    def url(self) -> str:
        """The address of the index."""
        return f"http://127.0.0.1:{self.server_port}/shards.json"

    def start(self) -> None:
        """Answer from a thread, until `shutdown`."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def wait_for_turn(self, n_bytes: int) -> None:
        """Sleep until `n_bytes` more may be sent."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + n_bytes / self.bytes_per_s
            pause_s = self._free_at - time.monotonic()
        time.sleep(max(0.0, pause_s))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no error."""


class _Handler(BaseHTTPRequestHandler):
    server: ShardServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.removeprefix("/")
        self.server.requested.append(name)
        path = self.server.folder / name
        status = self.server.statuses.pop(0) if self.server.statuses else 200 if path.is_file() else 404
        content = path.read_bytes() if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content), PIECE_BYTES):
            piece = content[start : start + PIECE_BYTES]
            self.server.wait_for_turn(len(piece))
            self.wfile.write(piece)
