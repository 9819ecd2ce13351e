"""The network between the processes of a run: the interface over which they communicate, and its speed.

gloo takes the interface of the host's name, which on many systems resolves to 127.0.1.1 and reaches no other machine.
Here it is the interface from which the main address is reached: the loopback interface on a single machine.
"""

import contextlib
import os
import socket
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

# Read by torch.distributed's two network libraries.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# A port that nobody needs to listen on: choosing a route sends nothing.
ANY_PORT = 9
CONNECT_INTERVAL_S = 0.1
# Messages of these sizes are timed so often: a round trip, and a network that is busy.
SMALL_BYTES, N_SMALL = 4, 50
LARGE_BYTES, N_LARGE = 1 << 24, 5


class NetworkSpeed(NamedTuple):
    """What was measured between the processes."""

    small_sum_s: float
    """Seconds that the sum of a single number over all of them takes."""
    bytes_per_s: float
    """That each of them sends during a large sum."""


def measure_network(n_ranks: int, add: Callable[[torch.Tensor], None], device: torch.device) -> NetworkSpeed:
    """The speed of `add`, which replaces a tensor by its sum over all ranks; all of them call this.

    A ring sends each byte 2 (W - 1) / W times for W ranks.
    """
    seconds = {}
    for n_bytes, n_times in ((SMALL_BYTES, N_SMALL), (LARGE_BYTES, N_LARGE)):
        tensor = torch.ones(n_bytes // 4, device=device)
        times = []
        for _ in range(n_times + 1):
            start = time.perf_counter()
            add(tensor)
            tensor.flatten()[0].item()  # waits for a GPU
            times.append(time.perf_counter() - start)
        seconds[n_bytes] = statistics.median(times[1:])
    return NetworkSpeed(seconds[SMALL_BYTES], LARGE_BYTES * 2 * (n_ranks - 1) / n_ranks / seconds[LARGE_BYTES])


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
