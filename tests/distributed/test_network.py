"""Where the processes of a run meet."""

import socket
import time

from tiny_gpt.distributed.network import wait_for_port


def test_a_port_is_waited_for_as_long_as_asked() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        start = time.monotonic()
        assert not wait_for_port("127.0.0.1", port, 0.3)
        assert 0.3 <= time.monotonic() - start < 3
        listener.listen()
        assert wait_for_port("127.0.0.1", port, 0.3)
