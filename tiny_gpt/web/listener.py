"""The socket that a server listens on, made before anything slow, so that a port in use is reported at once."""

import errno
import socket
import sys

from tiny_gpt.errors import UsageError

# How many ports are tried where the user names none.
N_PORTS = 50


def listen(host: str, port: int, usual_port: int) -> socket.socket:
    """A socket that listens at `host` and `port`; port 0: the first free one from `usual_port` on.

    Raises UsageError if the port is in use or not permitted, or if the address is not this machine's.
    """
    ports = [port] if port else range(usual_port, usual_port + N_PORTS)
    for candidate in ports:
        found = _try(host, candidate)
        if found is not None:
            return found
    if not port:
        raise UsageError(f"the ports {ports[0]} to {ports[-1]} are all in use: name one with --port", "no-free-port")
    free = next((number for number in range(port + 1, min(port + N_PORTS, 65536)) if _is_free(host, number)), None)
    hint = f"--port {free} is free" if free else "name another one"
    raise UsageError(f"--port {port}: another program is listening there; {hint}", code="port-in-use")


def url_of(listener: socket.socket, host: str = "") -> str:
    """http://HOST:PORT of a listening socket; `host` replaces an address that means all networks."""
    address, port = listener.getsockname()[:2]
    if address in ("0.0.0.0", "::"):
        address = host or ("127.0.0.1" if address == "0.0.0.0" else "::1")
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _is_free(host: str, port: int) -> bool:
    found = _try(host, port)
    if found is not None:
        found.close()
    return found is not None


def _try(host: str, port: int) -> socket.socket | None:
    """A listening socket, or None if the port is in use."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError):
        raise UsageError(
            f"--host {host}: no such address; 127.0.0.1 is this machine, 0.0.0.0 all networks", code="host-unknown"
        ) from None
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # there, REUSEADDR would let two programs listen to one port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
        found.setblocking(False)
        return found
    except OSError as failure:
        found.close()
        if failure.errno == errno.EADDRINUSE:
            return None
        if failure.errno in (errno.EACCES, errno.EPERM):
            raise UsageError(
                f"--port {port}: not permitted; ports from 1024 on need no rights", code="port-not-permitted"
            ) from None
        raise UsageError(
            f"--host {host}: not an address of this machine ({failure.strerror})", code="host-not-here"
        ) from None
