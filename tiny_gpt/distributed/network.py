"""The network interface over which the processes of a run communicate.

gloo takes the interface of the host's name, which on many systems resolves to 127.0.1.1 and reaches no other machine.
Here it is the interface from which the main address is reached: the loopback interface on a single machine.
"""

import contextlib
import os
import socket
import time

import psutil

# Read by torch.distributed's two network libraries.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# A port that nobody needs to listen on: choosing a route sends nothing.
ANY_PORT = 9
CONNECT_INTERVAL_S = 0.1


def choose_interface(main_address: str) -> str:
    """Have torch use the interface that leads to `main_address`, unless the user has chosen one. Returns its name, ""
    where none is found."""
    given = os.environ.get(INTERFACE_VARIABLES[0], "")
    name = given or interface_to(main_address)
    if name:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, name)
    return name


def wait_for_port(address: str, port: int, seconds: float) -> bool:
    """Whether someone listens at this port within `seconds`."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=max(1.0, seconds)):
            return True
        if time.monotonic() > end:
            return False
        time.sleep(CONNECT_INTERVAL_S)


def interface_to(address: str) -> str:
    """The name of the interface from which packets to `address` leave; "" if that is unknown."""
    own = own_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        if own and any(entry.address.split("%")[0] == own for entry in addresses):
            return name
    return ""


def own_address(address: str) -> str:
    """This machine's address as `address` sees it; "" if there is no route to it.

    127.0.0.0/8 is all loopback, but only 127.0.0.1 is an address of its interface.
    """
    with contextlib.suppress(OSError):
        family, _, _, _, target = socket.getaddrinfo(address, ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            own = str(probe.getsockname()[0])
        return "127.0.0.1" if own.startswith("127.") else own
    return ""
