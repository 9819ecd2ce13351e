"""Runs an application on a listening socket until a signal, then lets running requests finish.

uvicorn does the work. What differs: connections have time limits (connection.py); a signal that stopped the server is
not raised again afterwards, so a server that stopped as asked exits with 0; and a shutdown cannot hang, since what is
still open when its time is over is cut off (uvicorn would wait for it).
"""

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from tiny_gpt.host.signals import DUPLICATE_WITHIN_S
from tiny_gpt.web.connection import TimedConnection

# Requests that run when the server is asked to stop have so long; a second signal ends them at once.
GRACE_S = 30.0
MAX_CONNECTIONS = 512
# Bytes of a request's head.
MAX_HEAD_BYTES = 1 << 14


class WebServer:
    """One application on one socket."""

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        on_stop: Callable[[], None] = lambda: None,
        grace_s: float = GRACE_S,
    ) -> None:
        """`on_stop` is called once when the server is asked to stop, while requests still run."""
        config = uvicorn.Config(
            app,
            http=TimedConnection,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._listener = listener
        self._server = _Server(config, on_stop, grace_s)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGINT, SIGTERM or `stop`. `on_ready` is called in the server's thread, before any request."""
        self._server.on_ready = on_ready
        self._server.run([self._listener])

    def stop(self) -> None:
        """Have `run` return soon; may be called from any thread."""
        self._server.should_exit = True


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None], grace_s: float) -> None:
        super().__init__(config)
        self._on_stop, self._grace_s, self._asked_at = on_stop, grace_s, 0.0
        self.on_ready: Callable[[], None] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()  # idle ones close; the others after their answer
        deadline = time.monotonic() + self._grace_s
        while self._is_busy() and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
        await self.lifespan.shutdown()

    def _is_busy(self) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self.should_exit:
            self.should_exit, self._asked_at = True, time.monotonic()
        elif number == signal.SIGINT or time.monotonic() - self._asked_at > DUPLICATE_WITHIN_S:
            self.force_exit = True
