"""The file that a watchdog shares with its training process, made by the watchdog; heartbeat.py has its layout."""

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from tiny_gpt.host.heartbeat import HEARTBEAT_BYTES

_NAME = re.compile(r"tiny_gpt-(\d+)-.*")


@contextlib.contextmanager
def heartbeat_file() -> Iterator[tuple[BinaryIO, str, tuple[int, ...]]]:
    """The open file, the path by which the child finds it, and the descriptors that the child must inherit.

    On Linux it lies in memory and has no name in any folder: so a full disk does not kill the processes that map it
    (SIGBUS), and nothing is left when both are killed. Elsewhere it is a temporary file; those of watchdogs that were
    killed are deleted by the next one.
    """
    if sys.platform == "linux" and os.access("/proc/self/fd", os.R_OK | os.X_OK):
        with open(os.memfd_create("tiny_gpt-heartbeat"), "r+b", buffering=0) as file:
            file.write(bytes(HEARTBEAT_BYTES))
            yield file, f"/proc/self/fd/{file.fileno()}", (file.fileno(),)
        return
    remove_leftovers(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"tiny_gpt-{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "heartbeat")
        path.write_bytes(bytes(HEARTBEAT_BYTES))
        with open(path, "r+b", buffering=0) as file:
            yield file, str(path), ()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary folders in `folder` of watchdogs that no longer run."""
    with contextlib.suppress(OSError):
        for path in folder.glob("tiny_gpt-*"):
            match = _NAME.fullmatch(path.name)
            if match and not psutil.pid_exists(int(match[1])):
                shutil.rmtree(path, ignore_errors=True)
