"""A run's folder, read again and again: each time only what has changed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from tiny_gpt.config import (
    CONFIG_FILE,
    FINAL_FILE,
    LOG_FILE,
    METRICS_FILE,
    PLAN_FILE,
    SAMPLE_INDEX_FILE,
    SAMPLES_FOLDER,
    STATUS_FILE,
    TEXT_FACTS_FILE,
)
from tiny_gpt.config.run import CHECKPOINTS_FOLDER
from tiny_gpt.run.plan_file import read_saved_plan
from tiny_gpt.run.status import RunStatus, read_status
from tiny_gpt.view.copied import CopiedText
from tiny_gpt.view.metrics_reader import MAX_BYTES_READ, MetricsReader
from tiny_gpt.view.run_files import (
    CheckpointNote,
    RunEvent,
    read_checkpoint,
    read_events,
    read_samples,
    read_settings,
)
from tiny_gpt.view.run_view import PreviousRun, RunView
from tiny_gpt.view.text_facts import read_text_facts

Content = TypeVar("Content")

# A run of an earlier version, which wrote no status, counts as running if it wrote anything this lately.
FRESH_S = 1800.0


class _Cached(Generic[Content]):
    """What `read` makes of files, until one of them changes."""

    def __init__(self, read: Callable[[], Content], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._stamp: tuple[tuple[int, int] | None, ...] | None = None
        self._content: Content

    def get(self) -> Content:
        stamp = tuple(map(_stamp, self._paths))
        if stamp != self._stamp:
            self._content = self._read()
            self._stamp = stamp
        return self._content


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return None


class RunFolder:
    """A run's folder, read again and again; each time only what has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name or "run"
        self.metrics = MetricsReader(folder / METRICS_FILE)
        checkpoints = folder / CHECKPOINTS_FOLDER
        self._config = _Cached(lambda: read_settings(folder), folder / CONFIG_FILE)
        self._plan = _Cached(lambda: read_saved_plan(folder), folder / PLAN_FILE)
        self._samples = _Cached(lambda: read_samples(folder), folder / SAMPLES_FOLDER / SAMPLE_INDEX_FILE)
        self._events = _Cached(lambda: read_events(folder), folder / LOG_FILE)
        self._checkpoint = _Cached(lambda: read_checkpoint(folder), checkpoints)
        self._facts = _Cached(
            lambda: read_text_facts(folder, self._checkpoint.get()), folder / TEXT_FACTS_FILE, checkpoints
        )
        self._previous: PreviousRun | None = None
        self._has_looked_for_previous = False

    def view(self, now: float | None = None, copied: CopiedText | None = None) -> RunView:
        """The run as it is now."""
        now = time.time() if now is None else now
        self.metrics.update()
        status, events = read_status(self.folder / STATUS_FILE), self._events.get()
        if not self._has_looked_for_previous and self._checkpoint.get() is not None:
            self._previous, self._has_looked_for_previous = find_previous(self.folder, self._checkpoint.get()), True
        return RunView(
            name=self.name,
            now=now,
            state=self._state(status, events, now),
            status=status,
            config=self._config.get(),
            plan=self._plan.get(),
            metrics=self.metrics,
            samples=self._samples.get(),
            events=events,
            checkpoint=self._checkpoint.get(),
            facts=self._facts.get(),
            problems=self._problems(),
            previous=self._previous,
            copied=copied,
        )

    def _state(self, status: RunStatus | None, events: list[RunEvent], now: float) -> str:
        if status is None:
            if (self.folder / FINAL_FILE).is_file():
                return "finished"
            written = [stamp[0] / 1e9 for name in (METRICS_FILE, LOG_FILE) if (stamp := _stamp(self.folder / name))]
            if not written:
                return "preparing"
            return "training" if now - max(written) < FRESH_S else "died"
        if status.state != "training":
            return status.state
        if not status.has_process():
            return "restarting" if status.has_watchdog() else "died"
        pauses = [event for event in events if event.kind in ("pause", "resume") and event.time >= status.started - 1]
        return "paused" if pauses and pauses[-1].kind == "pause" else "training"

    def _problems(self) -> list[str]:
        problems = []
        if self.metrics.n_broken:
            lines = "1 line" if self.metrics.n_broken == 1 else f"{self.metrics.n_broken:,} lines"
            problems.append(f"{METRICS_FILE}: {lines} cannot be read and are left out.")
        if self.metrics.is_truncated:
            size = f"{METRICS_FILE} is larger than {MAX_BYTES_READ >> 20} MB"
            problems.append(f"{size}; only its first {self.metrics.n_rows:,} rows are shown.")
        return problems


def find_previous(folder: Path, checkpoint: CheckpointNote | None) -> PreviousRun | None:
    """The newest earlier run on the same text, beside this run's folder."""
    text = checkpoint.data.get("text_sha256") if checkpoint else None
    here = _stamp(folder / CONFIG_FILE)
    if not text or here is None:
        return None
    candidates = []
    for other in folder.resolve().parent.glob("*"):
        written = _stamp(other / CONFIG_FILE)
        if written is None or written >= here or other.samefile(folder):
            continue
        candidates.append((written, other))
    for _, other in sorted(candidates, reverse=True)[:20]:
        note = read_checkpoint(other)
        if note and note.data.get("text_sha256") == text:
            reader = MetricsReader(other / METRICS_FILE)
            reader.update()
            losses = reader.column("val_bits_per_byte")
            if np.isfinite(losses).any():
                return PreviousRun(other.name, float(np.nanmin(losses)))
    return None
