"""NAME.json and NAME.sent in a run's trackers/: its id in a tracker, and what the tracker has got.

NAME.sent has a line per evaluation and per sample, in the order in which they were sent: what it is, its step, and a
checksum. It is written after the tracker has taken them, so that a process that dies sends a few of them again.
"""

import json
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path

from tiny_gpt.files import atomic_write
from tiny_gpt.run.checkpoint_store import DamagedError, read_bounded

MAX_ID_BYTES = 10_000


@dataclass(frozen=True)
class Item:
    """Something to send: a line of metrics.jsonl, or a sample's text."""

    kind: str
    """row or sample"""
    step: int
    content: str

    @property
    def mark(self) -> str:
        """Its line in NAME.sent."""
        return f"{self.kind} {self.step} {zlib.crc32(self.content.encode()):08x}"


class SentItems:
    """What a tracker has got of a run, and the run's id there."""

    def __init__(self, path: Path) -> None:
        """`path` is NAME.sent."""
        self.path = path
        try:
            self._marks = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            self._marks = []
        self.is_resumed = bool(self._marks)

    def run_id(self) -> str:
        """The run's id in this tracker, the same every time; chosen at random at first."""
        path = self.path.with_suffix(".json")
        try:
            known = json.loads(read_bounded(path, MAX_ID_BYTES))["id"]
            if isinstance(known, str) and known.isalnum():
                return known
        except (DamagedError, OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        chosen = secrets.token_hex(4)
        with atomic_write(path) as file:
            file.write(json.dumps({"id": chosen}).encode())
        return chosen

    def new_items(self, items: list[Item]) -> tuple[list[Item], int | None]:
        """Those of `items` that have not been sent, and the step to roll back to first, or None.

        A row that differs from what was sent in its place, or is missing, means that the training has returned to an
        earlier step: everything from there on is void.
        """
        rows = [mark for mark in self._marks if mark.startswith("row ")]
        now = [item.mark for item in items if item.kind == "row"]
        n_same = next((i for i, mark in enumerate(rows) if i >= len(now) or mark != now[i]), len(rows))
        void_from = _step_of(rows[n_same]) if n_same < len(rows) else None
        if void_from is not None:
            self._marks = [mark for mark in self._marks if _step_of(mark) < void_from]
            self._rewrite()
        sent = set(self._marks)
        return [item for item in items if item.mark not in sent], void_from

    def record(self, items: list[Item]) -> None:
        """These have been sent."""
        marks = [item.mark for item in items]
        self._marks += marks
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(f"{mark}\n" for mark in marks)

    def _rewrite(self) -> None:
        with atomic_write(self.path) as file:
            file.write("".join(f"{mark}\n" for mark in self._marks).encode())


def _step_of(mark: str) -> int:
    words = mark.split(" ")
    return int(words[1]) if len(words) == 3 and words[1].isdecimal() else 0
