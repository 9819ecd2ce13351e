"""The memory that a plan may use."""

from types import SimpleNamespace

import psutil

from tests.planning.support import CPU
from tiny_gpt.device import available_memory_bytes


def test_memory_of_this_process_counts_as_available(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    assert available_memory_bytes(CPU) > 50 << 20
