"""Follows the files of a run's folder and passes what is new in them to a tracker.

Its knowledge of the run comes from the folder alone, so it can start late, die, or be left out for a while: it sends
what the tracker lacks, in the order of the steps.
"""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import filelock

from tiny_gpt.config import (
    METRICS_FILE,
    SAMPLE_INDEX_FILE,
    SAMPLES_FOLDER,
    STATUS_FILE,
    TRACKERS_FOLDER,
    TrackerName,
    sample_file,
)
from tiny_gpt.errors import UsageError, first_line
from tiny_gpt.run.checkpoint_store import DamagedError, read_bounded
from tiny_gpt.run.held_folder import FollowedFolder
from tiny_gpt.run.status import read_status
from tiny_gpt.run.summary import RunState, is_running, saved_config, summarize_run
from tiny_gpt.trackers.base import TrackedRun, TrackedState, Tracker
from tiny_gpt.trackers.registry import open_tracker
from tiny_gpt.trackers.sent import Item, SentItems

# A training evaluates every few seconds at most.
LOOK_S = 2.0
# Waits after failures in a row; the last one repeats.
REOPEN_S = (5.0, 30.0, 120.0, 600.0)
# At a run's end there is no time for more.
LAST_RETRIES_S = (1.0, 4.0)
BATCH = 500
MAX_SENT_SAMPLE_BYTES = 1 << 20
STATE_IN_TRACKER: dict[RunState, TrackedState] = {
    "running": "training",
    "finished": "finished",
    "stopped": "stopped",
    "failed": "failed",
    "crashed": "failed",
    "model only": "finished",
}
# Not quantities, but where a row belongs.
POSITION = {"step", "time"}


class Follower:
    """One run and one tracker."""

    def __init__(
        self, place: FollowedFolder, name: TrackerName, report: Callable[[str], None], open_run: Any = open_tracker
    ) -> None:
        """`place` is the run's folder; `report` takes lines for the tracker's log."""
        self._place, self.name, self.report = place, name, report
        self.run_dir = place.path()
        self.n_sent = 0
        self._open_run = open_run
        self._tracker: Tracker | None = None
        self._sent: SentItems | None = None
        self._seen: object = None

    def follow(self, over: threading.Event) -> bool:
        """Send what is new until `over` is set, then the rest; returns whether the tracker has got everything.

        `over.state`, if it has one, is how the training ended; otherwise the run's folder says it.
        """
        n_failures = n_last_tries = 0
        while True:
            was_over = over.is_set()  # asked first: what was written before the end is read below
            try:
                self.send()
                if was_over:
                    self.finish(getattr(over, "state", ""))
                    return True
                n_failures = 0
                over.wait(LOOK_S)
            except Exception as failure:
                self.report(f"{type(failure).__name__}: {first_line(failure)}")
                self._tracker, self._seen = None, None
                if not was_over:
                    over.wait(REOPEN_S[min(n_failures, len(REOPEN_S) - 1)])
                    n_failures += 1
                elif n_last_tries < len(LAST_RETRIES_S):
                    time.sleep(LAST_RETRIES_S[n_last_tries])
                    n_last_tries += 1
                else:
                    return False

    def send(self) -> None:
        """Pass on what the tracker lacks; raises whatever the tracker raises."""
        self._find_folder()
        seen = self._fingerprint()
        if seen == self._seen:
            return
        sent, tracker = self._opened()
        items, void_from = sent.new_items(read_items(self.run_dir))
        if void_from is not None:
            tracker.roll_back(void_from)
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            for item in batch:
                _pass_on(item, tracker)
            tracker.flush()
            sent.record(batch)
            self.n_sent += len(batch)
        self._seen = seen

    def finish(self, state: str = "") -> None:
        """Close the run in the tracker, with its state and results; raises whatever the tracker raises."""
        self._find_folder()
        _, tracker = self._opened()
        run = summarize_run(self.run_dir)
        state = state or {"running": "training", "crashed": "failed", "model only": "finished"}.get(
            run.state, run.state
        )
        values = {"step": run.best_step, "val_loss": run.best_val_loss, "val_bits_per_byte": run.best_val_bits_per_byte}
        results = {name: float(value) for name, value in values.items() if value is not None}
        tracker.finish(cast(TrackedState, state), results if len(results) == len(values) else {})
        self._tracker = None

    def _find_folder(self) -> None:
        """If the run's folder was moved, open the run in the tracker again: its files are in the folder's new place."""
        path = self._place.path()
        if path != self.run_dir:
            self.report(f"the folder of the run is now {path}")
            if self._tracker is not None:
                with contextlib.suppress(Exception):  # all has been flushed; the files' new place is what matters
                    self._tracker.finish("training", {})
            self.run_dir, self._sent, self._tracker, self._seen = path, None, None, None

    def _opened(self) -> tuple[SentItems, Tracker]:
        """What has been sent, and the open run."""
        if self._sent is None or self._tracker is None:
            folder = self.run_dir / TRACKERS_FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            self._sent = SentItems(folder / f"{self.name}.sent")
            run = TrackedRun(
                id=self._sent.run_id(),
                name=self.run_dir.resolve().name,
                folder=folder / self.name,
                config=tracked_config(self.run_dir),
                is_resumed=self._sent.is_resumed,
            )
            self._tracker = self._open_run(self.name, run)
        return self._sent, self._tracker

    def _fingerprint(self) -> object:
        """Changes whenever the rows or the samples do."""
        return [_identity(path) for path in (self.run_dir / METRICS_FILE, _index_of(self.run_dir))]


@contextlib.contextmanager
def sole_sender(run_dir: Path, name: TrackerName) -> Iterator[None]:
    """Hold the right to send the run to this tracker. Raises UsageError while another process has it."""
    folder = run_dir / TRACKERS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as timeout:
        raise UsageError(f"another process sends {run_dir} to {name} already", code="tracker-in-use") from timeout
    except (OSError, NotImplementedError):
        pass  # some network drives have no locks
    try:
        yield
    finally:
        lock.release()


def has_begun(run_dir: Path, since: float) -> bool:
    """Whether a training in `run_dir` was ready for its first step after `since`, as time.time()."""
    status = read_status(run_dir / STATUS_FILE)
    return status is not None and status.started >= since


def is_trained_now(run_dir: Path) -> bool:
    """Whether a process trains the run in `run_dir`."""
    return is_running(read_status(run_dir / STATUS_FILE))


def tracked_config(run_dir: Path) -> dict[str, Any]:
    """The run's settings and the facts about its text and model, for a tracker's table of runs."""
    config = saved_config(run_dir)
    status = read_status(run_dir / STATUS_FILE)
    settings = config.to_flat() if config else {}
    facts = {name: value for name, value in (status.facts if status else {}).items() if name not in settings}
    known = {name: value for name, value in facts.items() if type(value) in (int, str, bool)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in (settings | known).items()}


def read_items(run_dir: Path) -> list[Item]:
    """All rows and samples in the folder, by step. Incomplete and broken lines are left out, as are samples of
    evaluations that a rollback made void."""
    rows = {line: _numbers(line) for line in _complete_lines(run_dir / METRICS_FILE)}
    evaluated_at = {int(row["step"]): row.get("time", 0.0) for row in rows.values() if "step" in row}
    items = [Item("row", int(row["step"]), line) for line, row in rows.items() if "step" in row]
    for step, at in _sample_times(run_dir).items():
        if step in evaluated_at and at >= evaluated_at[step]:
            items += _sample(run_dir, step, at)
    return sorted(items, key=lambda item: item.step)


def _sample_times(run_dir: Path) -> dict[int, float]:
    """{step: when its sample was written}."""
    entries = map(_numbers, _complete_lines(_index_of(run_dir)))
    return {int(entry["step"]): entry.get("time", 0.0) for entry in entries if "step" in entry}


def _sample(run_dir: Path, step: int, at: float) -> list[Item]:
    try:
        text = read_bounded(run_dir / SAMPLES_FOLDER / sample_file(step), MAX_SENT_SAMPLE_BYTES)
    except (DamagedError, OSError):
        return []
    return [Item("sample", step, json.dumps({"time": at, "text": text.decode("utf-8", errors="replace")}))]


def _index_of(run_dir: Path) -> Path:
    return run_dir / SAMPLES_FOLDER / SAMPLE_INDEX_FILE


def _complete_lines(path: Path) -> list[str]:
    """The lines of a file that may be growing; behind the last line feed is one that is being written."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []


def _pass_on(item: Item, tracker: Tracker) -> None:
    if item.kind == "sample":
        sample = json.loads(item.content)
        tracker.log_sample(item.step, sample["time"] or time.time(), sample["text"])
        return
    row = _numbers(item.content)
    values = {name: value for name, value in row.items() if name not in POSITION}
    tracker.log_row(item.step, row.get("time") or time.time(), values)


def _numbers(line: str) -> dict[str, float]:
    """The finite numbers in a line of JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(row, dict):
        return {}
    return {name: value for name, value in row.items() if type(value) in (int, float) and math.isfinite(value)}


def _identity(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
