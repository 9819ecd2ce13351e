"""Intercepts every call that changes files below a folder: each is named and counted, and can be made to fail.

The calls are Python's own: `open`, `write`, `os.fsync`, `os.rename`, ... What a C library writes by itself is not seen;
tiny_gpt's files are all written from Python.
"""

import builtins
import io
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Call:
    """A file system call that is about to be made."""

    kind: str
    """open, write, fsync, rename, mkdir, unlink or rmdir."""
    path: str
    """Path below the folder."""
    target: str = ""
    """Target of a rename."""
    data: Any = b""
    """Data of a write: bytes or text."""
    is_first: bool = False
    """Whether a write is the first to its file, or an open truncates it."""
    half: Callable[[], None] = lambda: None
    """Perform half of a write and flush it; do nothing for any other call."""

    @property
    def what(self) -> str:
        """Its path with numbers replaced by N: checkpoints/.step-N.N.part/state.json."""
        return re.sub(r"\d+", "N", self.path)

    def __str__(self) -> str:
        ordinal = {"write": "first " if self.is_first else "later "}.get(self.kind, "")
        return f"{ordinal}{self.kind} of {self.what}"


Visit = Callable[[Call], None]


def visit_calls(folder: Path, visit: Visit) -> None:
    """From now on, call `visit` before each such call in this process; what it raises, the call raises."""
    _Calls(folder, visit)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Calls:
    def __init__(self, folder: Path, visit: Visit) -> None:
        self.folder, self.visit = os.path.abspath(folder), visit
        self.open, self.os_open, self.fsync = builtins.open, os.open, os.fsync
        self.paths: dict[int, str] = {}  # by descriptor
        self.is_busy = False
        builtins.open = io.open = self.opened  # type: ignore[assignment]
        os.open, os.fsync = self.os_opened, self.synced  # type: ignore[assignment]
        for kind in ("mkdir", "unlink", "rmdir"):
            setattr(os, kind, self.wrapped(kind, getattr(os, kind)))
        os.remove = os.unlink
        for kind in ("rename", "replace"):
            setattr(os, kind, self.renamed(getattr(os, kind)))

    def about(self, kind: str, path: str, target: str = "", **more: Any) -> None:
        """Report a call if it is below the folder; calls made by `visit` itself are not reported."""
        if self.is_busy or not Path(path).is_relative_to(self.folder):
            return
        self.is_busy = True
        try:
            names = (os.path.relpath(each, self.folder) if each else "" for each in (path, target))
            self.visit(Call(kind, *names, **more))
        finally:
            self.is_busy = False

    def absolute(self, path: Any, dir_fd: int | None = None) -> str:
        base = "" if dir_fd is None else self.paths.get(dir_fd, "")
        return os.path.abspath(os.path.join(base, os.fsdecode(path)))

    def opened(self, path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
        if isinstance(path, int):
            return self.open(path, mode, *args, **more)
        name, writes = self.absolute(path), not set(mode).isdisjoint("wax+")
        if writes:
            self.about("open", name, is_first="w" in mode)
        file = self.open(path, mode, *args, **more)
        self.paths[file.fileno()] = name
        return _File(self, file, name) if writes and Path(name).is_relative_to(self.folder) else file

    def os_opened(self, path: Any, flags: int, *args: Any, dir_fd: int | None = None, **more: Any) -> int:
        name = self.absolute(path, dir_fd)
        if flags & os.O_CREAT:
            self.about("open", name)
        descriptor = self.os_open(path, flags, *args, dir_fd=dir_fd, **more)
        self.paths[descriptor] = name
        return descriptor

    def synced(self, descriptor: int) -> None:
        self.about("fsync", self.paths.get(descriptor, "/"))
        self.fsync(descriptor)

    def wrapped(self, kind: str, call: Callable[..., None]) -> Callable[..., None]:
        def wrapper(path: Any, *args: Any, dir_fd: int | None = None, **more: Any) -> None:
            self.about(kind, self.absolute(path, dir_fd))
            call(path, *args, dir_fd=dir_fd, **more)

        return wrapper

    def renamed(self, call: Callable[..., None]) -> Callable[..., None]:
        def wrapper(source: Any, target: Any, **more: Any) -> None:
            self.about("rename", self.absolute(source), self.absolute(target))
            call(source, target, **more)

        return wrapper


class _File:
    """A file opened for writing that reports each write."""

    def __init__(self, calls: _Calls, file: Any, name: str) -> None:
        self._calls, self._file, self._name, self._is_new = calls, file, name, True

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._calls.about("write", self._name, data=data, is_first=self._is_new, half=half)
        self._is_new = False
        return int(self._file.write(data))

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
