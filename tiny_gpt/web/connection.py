"""A connection with time limits, which uvicorn's has only between requests.

A client that sends its request byte by byte, or none at all, is dropped after a while; so is one that stops reading an
answer (its connection may have died without a word). Neither costs more than a few kilobytes until then.
"""

import asyncio
import contextlib
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# For the whole request to arrive; a slow phone sends a megabyte in that time.
REQUEST_TIMEOUT_S = 30.0
# Without a byte read by the client while the answer waits for it.
STALL_TIMEOUT_S = 60.0
# The server's buffer of what a client has not read yet; beyond, whoever writes the answer waits.
UNREAD_BYTES = 1 << 18


class TimedConnection(H11Protocol):
    """One client's connection."""

    request_timeout_s = REQUEST_TIMEOUT_S
    stall_timeout_s = STALL_TIMEOUT_S

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # the system then notices clients that vanished
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # h11 is in IDLE while a request's head is incomplete, in SEND_BODY while its body is.
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            if self._deadline is None:
                self._expect_request()
        else:
            _cancel(self._deadline)
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._deadline)
        _cancel(self._stall)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        _cancel(self._stall)
        super().resume_writing()

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(self.request_timeout_s, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
