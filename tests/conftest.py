"""The world that every test lives in: a cache of its own, no network, the same random examples every time."""

import errno
import gc
import io
import socket
from dataclasses import replace

import pytest
import torch
from hypothesis import settings

from tiny_gpt.bootstrap import ROOT
from tiny_gpt.planning import pilot_run

settings.register_profile("tests", database=None, deadline=None, derandomize=True)
settings.load_profile("tests")


def pytest_collection_finish():
    """What importing and collecting made stays to the end, so the garbage collector need not look at it again.

    Each full collection takes half a second otherwise, and training runs ask for some.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def world(tmp_path_factory):
    """Nothing of the user's is read or written, and what a test starts finds this checkout.

    One thread: threads that wait for one another slow so small models down, a hundredfold on a busy machine.
    A pilot run of 2 steps instead of 60: nothing but its own tests asks how good its forecast is.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_GPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(socket.socket, "connect", _no_network)
        patch.setattr(pilot_run, "TRAIN", replace(pilot_run.TRAIN, steps=2))
        yield


_connect = socket.socket.connect


def _no_network(self, address):
    if isinstance(address, tuple) and address[0] == "127.0.0.1":  # a server of the test's own
        return _connect(self, address)
    raise AssertionError(f"a test asked the network for {address}")


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, whichever tests the process has run before."""
    torch.manual_seed(0)


@pytest.fixture
def fill_disk(monkeypatch):
    """`fill_disk(module, n_bytes)`: files that `module` opens for writing from now on find room for so much."""

    def fill(module, n_bytes):
        class FullDisk(io.FileIO):
            def write(self, data):
                if self.tell() + len(memoryview(data).cast("B")) > n_bytes:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return super().write(data)

        monkeypatch.setattr(module, "open", lambda path, mode="r", **_: FullDisk(path, mode), raising=False)

    return fill
